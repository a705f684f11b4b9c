"""The plot of the page: accuracy against eps, a panel for each family, the exact curve solid, the rule's dashed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence.judging import estimate
from evidence.records import RADII, Evidence, Family, Published
from robustbench_bio.records.threat import parse_eps
from robustbench_bio.report.figures import new_figure, write_figure
from robustbench_bio.report.palette import COLOURS, GREEN, RULES, VERMILION


def write_curves(published: Published, evidence: Evidence, stem: Path) -> None:
    """Write the plot as stem.png and stem.svg: bp, usf, mixed and random, as far as they were measured."""
    shown = {family: _shown(family, evidence) for family in published.families}
    panels = [family for family, models in shown.items() if models]
    if not panels:
        return
    figure, axes = new_figure(len(panels), squeeze=False, sharey=True)
    for panel, family in zip(axes.flat, panels, strict=True):
        for model, colour in shown[family].items():
            _draw_network(panel, evidence, model, colour)
        _label(panel, family)
    figure.suptitle(f"PGD, {evidence.dataset}, n = {evidence.n}: exact solid, rule dashed", fontsize="medium")
    write_figure(figure, stem)


def _shown(family: Family, evidence: Evidence) -> dict[str, str]:
    """Return the networks of a panel and their colours: of the rule, or one that stands for mixed or random rules."""
    colours = {"bp": COLOURS["ink"], "random": GREEN} | RULES
    models = [model for model in family.shown() if model in evidence.networks]
    return {model: colours.get(model.partition("-")[0], VERMILION).light for model in models}


def _draw_network(panel: Any, evidence: Evidence, model: str, colour: str) -> None:
    clean = evidence.clean(model)
    for gradient, style in (("exact", "-"), ("rule", "--")) if evidence.has_rules(model) else (("exact", "-"),):
        curve = [clean, *(evidence.robust(model, "pgd", eps, gradient) for eps in RADII)]
        _draw_curve(panel, curve, label=f"{model}, {gradient}", color=colour, linestyle=style)


def _draw_curve(panel: Any, curve: Sequence[Mapping[int, Sequence[bool]]], **line: Any) -> None:
    values = [estimate(point) for point in curve]
    radii = [0.0, *(255 * parse_eps(eps) for eps in RADII)]
    panel.plot(radii, [100 * value.mean for value in values], marker="o", markersize=3, **line)
    if line["linestyle"] == "-":
        low, high = ([100 * value[side] for value in values] for side in (1, 2))
        panel.fill_between(radii, low, high, color=line["color"], alpha=0.12, linewidth=0)


def _label(panel: Any, family: Family) -> None:
    """Give each radius the same room, each being twice the one before, and 0 too."""
    radii = [255 * parse_eps(eps) for eps in RADII]
    panel.set_xscale("symlog", base=2, linthresh=radii[0])
    panel.set_xlim(-0.2 * radii[0], 1.15 * radii[-1])
    panel.set_xticks([0, *radii], [f"{round(radius, 2):g}" for radius in (0, *radii)])
    panel.set_xticks([], minor=True)
    panel.set(title=family.title, xlabel="eps (linf, in 255ths)", ylabel="robust accuracy (%)", ylim=(0, 100))
    panel.grid(alpha=0.3)
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=7, handlelength=3, ncols=2)
