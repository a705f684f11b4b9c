"""Curves and intervals as SVG that a page can hold."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from markupsafe import Markup, escape

from robustbench_bio.core.stats import Interval, wilson
from robustbench_bio.records.gradient import EXACT, Gradient
from robustbench_bio.records.threat import format_eps

#: Sizes of a plot: width, height, and margins left, top, right, bottom.
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 460, 290, 44, 10, 14, 44

#: Ticks of eps that are nearer than this would be written over each other.
_TICK = 24.0

#: Width of an interval's bar; percentages are drawn between the margins.
_BAR, _BAR_MARGIN = 176, 8

interval = lru_cache(maxsize=None)(wilson)


class Point(NamedTuple):
    """How many of n examples are robust at a radius; eps = 0 is the clean accuracy."""

    eps: float
    robust: int
    n: int


class Curve(NamedTuple):
    """One attack over eps.

    Attributes:
        attack: name and settings.
        norm: of the radii.
        lines: gradient → points, the first at eps = 0.
    """

    attack: str
    norm: str
    lines: dict[str, list[Point]]


def curve_plot(chosen: Curve) -> Markup:
    """Return robust accuracy against eps as SVG: exact gradient solid, rules' dashed, others dotted, Wilson bands."""
    radii = sorted({point.eps for points in chosen.lines.values() for point in points})
    across = _across(radii)
    drawn = [f'<svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">']
    drawn.append(f"<title>Robust accuracy against eps under {escape(chosen.attack)}</title>")
    right, floor = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for share in (0, 25, 50, 75, 100):
        y = _down(share / 100)
        drawn.append(f'<path class="grid" d="M{_LEFT} {y}H{right}"/>')
        drawn.append(f'<text class="tick" text-anchor="end" x="{_LEFT - 8}" y="{y + 4}">{share}</text>')
    last = -math.inf
    for eps, x in across.items():
        if x - last >= _TICK:
            text = format_eps(eps, chosen.norm).removesuffix("/255").removesuffix(" px") if eps else "0"
            drawn.append(f'<text class="tick" text-anchor="middle" x="{x}" y="{floor + 18}">{text}</text>')
            last = x
    unit = {"linf": "eps (linf, in 255ths)", "l0": "eps (pixels)"}.get(chosen.norm, f"eps ({chosen.norm})")
    drawn.append(f'<text class="axis" text-anchor="middle" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}">{unit}</text>')
    for gradient in sorted(chosen.lines, key=lambda name: (name == "exact", name)):
        drawn += _line(chosen.lines[gradient], across, gradient)
    return Markup("".join([*drawn, "</svg>"]))  # noqa: S704 - every text in it is escaped


def gradient_style(gradient: str) -> str:
    """Return the class of a gradient's line: `g-exact`, `g-rule` (own too), or `g-other`."""
    kind = Gradient.read(gradient)
    return "g-exact" if kind == EXACT else "g-rule" if kind.claimed else "g-other"


def _across(radii: Sequence[float]) -> dict[float, float]:
    """Return radius → x; 0 has a place of its own, then each doubling takes the same room."""
    steps = {eps: 1 + math.log2(eps / radii[1]) if eps else 0.0 for eps in radii}
    room = (_WIDTH - _LEFT - _RIGHT - 8) / max(1.0, *steps.values())
    return {eps: round(_LEFT + 4 + room * step, 1) for eps, step in steps.items()}


def _down(share: float) -> float:
    return round(_TOP + (1 - share) * (_HEIGHT - _TOP - _BOTTOM), 1)


def _line(points: Sequence[Point], across: dict[float, float], gradient: str) -> list[str]:
    style = gradient_style(gradient)
    bounds = [interval(point.robust, point.n) for point in points]
    over = [f"{across[p.eps]} {_down(b.high)}" for p, b in zip(points, bounds, strict=True)]
    under = [f"{across[p.eps]} {_down(b.low)}" for p, b in zip(points, bounds, strict=True)]
    places = [(across[p.eps], _down(p.robust / p.n)) for p in points]
    drawn = [f'<path class="band {style}" d="M{"L".join([*over, *reversed(under)])}z"/>']
    drawn.append(f'<path class="line {style}" d="M{"L".join(f"{x} {y}" for x, y in places)}"/>')
    for point, bound, (x, y) in zip(points, bounds, places, strict=True):
        shares = f"{100 * point.robust / point.n:.1f} % [{100 * bound.low:.1f}, {100 * bound.high:.1f}]"
        told = f"{escape(gradient)} gradient: {shares}" if point.eps else f"clean: {shares}"
        drawn.append(f'<circle class="dot {style}" cx="{x}" cy="{y}" r="3"><title>{told}</title></circle>')
    return drawn


def interval_bar(
    share: float, bounds: Interval | tuple[float, float], height: int, clean: float | None = None
) -> Markup:
    """Return a row of a forest plot as SVG: an interval, a dot at `share`, a ring at the clean accuracy if given."""
    low, high = (_beside(bound) for bound in bounds)
    middle = height / 2
    grid = "".join(f"M{_beside(tick / 4)} 0V{height}" for tick in range(5))
    # The numbers stand beside it as text.
    drawn = f'<svg class="bar" width="{_BAR}" height="{height}" aria-hidden="true"><path class="grid" d="{grid}"/>'
    if clean is not None:
        drawn += f'<circle class="clean" cx="{_beside(clean)}" cy="{middle}" r="3.5"/>'
    drawn += f'<path class="reach" d="M{low} {middle}H{high}M{low} {middle - 4}v8M{high} {middle - 4}v8"/>'
    drawn += f'<circle class="point" cx="{_beside(share)}" cy="{middle}" r="4"/></svg>'
    return Markup(drawn)  # noqa: S704 - nothing but numbers


def _beside(share: float) -> float:
    return round(_BAR_MARGIN + share * (_BAR - 2 * _BAR_MARGIN), 1)


def interval_axis() -> Markup:
    """Return the head of a column of bars as SVG."""
    texts = (f'<text text-anchor="middle" x="{_beside(t / 100)}" y="10">{t}</text>' for t in (0, 50, 100))
    return Markup(f'<svg class="bar" width="{_BAR}" height="14" aria-hidden="true">{"".join(texts)}</svg>')  # noqa: S704
