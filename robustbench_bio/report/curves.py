"""The plot of robust accuracy against eps."""

import itertools
from collections.abc import Sequence
from typing import Any

from robustbench_bio.core.stats import wilson
from robustbench_bio.diagnosis.grid import GridResult
from robustbench_bio.records.gradient import EXACT
from robustbench_bio.records.result import Result
from robustbench_bio.report.figures import new_figure
from robustbench_bio.report.palette import SERIES

#: Panels side by side.
PANELS_BESIDE = 3


def curve_places(grid: GridResult) -> dict[str, dict[str, list[int]]]:
    """Return norm → name of an attack that has several radii → places of its measurements, by gradient and radius."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for place, measurement in enumerate(grid.measurements):
        key = (
            measurement.threat.norm,
            measurement.attack,
            "σ" in measurement.written,
            tuple(sorted(measurement.params.items())),
        )
        alike.setdefault(key, []).append(place)
    named: dict[str, dict[str, list[int]]] = {}
    for places in alike.values():
        measurements = [grid.measurements[place] for place in places]
        if len({measurement.threat.eps for measurement in measurements}) > 1:
            same_norm = named.setdefault(measurements[0].threat.norm, {})
            name = measurements[0].attack + (", σ" if "σ" in measurements[0].written else "")
            if name in same_norm:
                name = " ".join([name, *measurements[0].settings()])
            same_norm[name] = sorted(
                places, key=lambda place: (str(grid.measurements[place].gradient), grid.measurements[place].threat.eps)
            )
    return named


def plot(grid: GridResult, norm: str, chosen: dict[str, list[int]]) -> Any:
    """Return one panel for each network: exact gradient solid, rules' and own gradient dashed, Wilson bands."""
    columns = min(PANELS_BESIDE, len(grid.networks))
    figure, axes = new_figure(columns, -(-len(grid.networks) // columns), squeeze=False, sharex=True, sharey=True)
    unit, label = (255, "eps (linf, in 255ths)") if norm == "linf" else (1, f"eps ({norm})")
    gradients = dict.fromkeys((EXACT, *(measurement.gradient for measurement in grid.measurements)))
    lines = [(name, gradient) for name in chosen for gradient in gradients]
    for panel, network in zip(axes.flat, grid.networks, strict=False):
        for colour, (name, gradient) in zip(itertools.cycle(SERIES), lines, strict=False):
            same = [network.results[place] for place in chosen[name] if grid.measurements[place].gradient == gradient]
            results = [result for result in same if result is not None]
            if results:
                style = "--" if gradient.claimed else "-" if gradient == EXACT else ":"
                _draw(panel, results, unit, color=colour.light, linestyle=style, label=f"{name}, {gradient} gradient")
        panel.set(title=network.model, xlabel=label, ylabel="robust accuracy (%)", ylim=(0, 100))
        panel.label_outer()
        panel.grid(alpha=0.3)
    for panel in axes.flat[len(grid.networks) :]:
        panel.set_visible(False)
    _mark_radii(
        axes[0, 0],
        sorted({grid.measurements[place].threat.eps * unit for places in chosen.values() for place in places}),
    )
    figure.suptitle(f"{grid.preset.title}: {grid.dataset}, n = {grid.n}; bands: Wilson 95 %")
    pairs = [zip(*panel.get_legend_handles_labels(), strict=True) for panel in axes.flat]
    handles = {text: handle for panel in pairs for handle, text in panel}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, 2 * columns))
    return figure


def _mark_radii(panel: Any, radii: Sequence[float]) -> None:
    """Give each radius the same room, if each is twice the one before, and 0 too."""
    panel.set_xscale("symlog", base=2, linthresh=radii[0])
    panel.set_xlim(-0.2 * radii[0], 1.15 * radii[-1])
    panel.set_xticks([0, *radii], [f"{round(radius, 2):g}" for radius in (0, *radii)])
    panel.set_xticks([], minor=True)


def _draw(panel: Any, results: Sequence[Result], unit: float, **line: Any) -> None:
    """Draw a curve that starts at eps = 0 with the clean accuracy."""
    n = results[0].n
    counts = [sum(results[0].outcomes_record.clean_correct())]
    counts += [sum(result.outcomes_record.robust_correct()) for result in results]
    radii = [0.0, *(result.spec.threat.eps * unit for result in results)]
    low, high = zip(*(wilson(count, n) for count in counts), strict=True)
    panel.plot(radii, [100 * count / n for count in counts], marker="o", markersize=3, **line)
    panel.fill_between(
        radii, [100 * v for v in low], [100 * v for v in high], color=line["color"], alpha=0.15, linewidth=0
    )
