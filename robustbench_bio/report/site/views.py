"""What the pages show of a board and its entries, as plain values: all that is decided before anything is drawn."""

import base64
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from robustbench_bio.leaderboard.ranking import RankedEntry
from robustbench_bio.records.board import Board
from robustbench_bio.records.entry import Entry, Measured, pack
from robustbench_bio.records.gradient import Gradient
from robustbench_bio.records.threat import format_eps
from robustbench_bio.report.rendering import Key
from robustbench_bio.report.site import plots
from robustbench_bio.report.site.cells import card_rules
from robustbench_bio.report.tables import NONE, bounds, percent

#: What an entry without a diagnosis shows instead of a verdict.
UNDIAGNOSED = "undiagnosed"


class Place(NamedTuple):
    """An entry and its place on a board.

    Attributes:
        ranked: the entry and its rank range.
        order: its place from 0 in the board's order.
    """

    board: Board
    ranked: RankedEntry
    order: int

    @property
    def entry(self) -> Entry:
        """The entry."""
        return self.ranked.entry

    @property
    def page(self) -> str:
        """Path of its page, from the site's root."""
        return f"models/{self.board.name}/{self.entry.model}.html"

    @property
    def verdict(self) -> str:
        """The verdict, or that there is none."""
        return self.entry.finding.verdict if self.entry.finding else UNDIAGNOSED

    @property
    def number(self) -> str:
        """Whether the number may be believed, or that nobody looked."""
        return self.entry.finding.number if self.entry.finding else UNDIAGNOSED


def board_threat(board: Board) -> str:
    """Return a board's threat model as text."""
    return str(board.rank_by)


def bits(text: str, n: int) -> NDArray[np.bool_]:
    """Return n packed bits as bools [n]."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=n).astype(bool)


def ranks(entry: Entry, measured: Measured) -> bool:
    """Tell whether a measurement takes part in the worst case that ranks."""
    return measured.spec.threat == entry.rank_by


def settings(measured: Measured) -> str:
    """Return an attack's parameters as text, without those left to the attack."""
    texts = (
        f"{name} {json.dumps(v) if isinstance(v, bool) else f'{v:,}' if isinstance(v, int) else v}"
        for name, v in measured.spec.params.items()
        if v is not None
    )
    return ", ".join(texts)


def entry_curves(entry: Entry) -> list[plots.Curve]:
    """Return every attack that was run at several radii, with its gradients."""
    clean = plots.Point(0.0, int(bits(entry.measurements[0].clean, entry.n).sum()), entry.n)
    attacks: dict[tuple[str, ...], dict[str, list[plots.Point]]] = {}
    for measured in entry.measurements:
        spec = measured.spec
        if spec.threat.eps > 0:
            key = (spec.threat.norm, spec.attack, spec.backend, repr(sorted(spec.params.items())), settings(measured))
            points = attacks.setdefault(key, {}).setdefault(str(spec.gradient), [clean])
            points.append(plots.Point(spec.threat.eps, int(bits(measured.robust, entry.n).sum()), entry.n))
    many = {key: lines for key, lines in attacks.items() if len({p.eps for ps in lines.values() for p in ps}) > 2}
    return [
        plots.Curve(
            ", ".join(filter(None, (attack, "" if backend == "native" else backend, text))),
            norm,
            {gradient: sorted(points) for gradient, points in lines.items()},
        )
        for (norm, attack, backend, _, text), lines in many.items()
    ]


def curve_keys(curve: plots.Curve) -> list[Key]:
    """Return the legend of a curve, the exact gradient first."""
    names = sorted(curve.lines, key=lambda name: (name != "exact", name != "rule", name))
    return [Key(plots.gradient_style(name), f"{name} gradient") for name in names]


def largest_gap(curve: plots.Curve) -> str:
    """Return in one sentence where the rules' or own gradient flatters most; "" without one beside the exact one."""
    lines = {Gradient.read(text): points for text, points in curve.lines.items()}
    gaps = []
    for gradient, points in lines.items():
        true = gradient.held_against(lines)
        exact = {point.eps: point.robust for point in lines[true]} if true else {}
        gaps += [
            ((point.robust - exact[point.eps]) / point.n, point.eps, gradient.source)
            for point in points
            if point.eps and point.eps in exact
        ]
    if not gaps:
        return ""
    gap, eps, source = max(gaps)
    whose = {"rule": "rules’"}.get(source, "network’s own")
    where = f"at {curve.norm} {format_eps(eps, curve.norm)}"
    if gap <= 0:
        return f"Nowhere does the {whose} gradient leave more examples robust than the exact one."
    return f"The {whose} gradient leaves up to {100 * gap:.1f} points more robust than the exact one ({where})."


def value_text(value: Any) -> str:
    """Return a value of a card or a fact as a person reads it."""
    if value is None or value in ("", [], {}):
        return NONE
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        whole = math.isfinite(value) and value == int(value)
        return f"{int(value):,}" if whole and abs(value) < 1e15 else f"{value:.6g}"
    return ", ".join(map(value_text, value))


def fields(document: dict[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield every field of nested tables as dotted name and text."""
    for name, value in document.items():
        if isinstance(value, dict) and value:
            yield from fields(value, f"{before}{name}.")
        else:
            yield before + name, value_text(value)


def card_fields(entry: Entry) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return every field of a card in groups: the card, and each of its networks with its recipe."""
    document = entry.card.model_dump(mode="json")
    networks = document.pop("datasets")
    groups = [("", list(fields(document)))]
    for dataset, network in networks.items():
        recipe = network.pop("recipe")
        groups += [(f"Network on {dataset}", list(fields(network))), ("Its recipe", list(fields(recipe)))]
    return groups


def day(created: str) -> str:
    """Return the day of a time stamp; "" for any other text."""
    return created[:10] if re.match(r"\d{4}-\d\d-\d\d", created, re.ASCII) else ""


def reference_address(reference: str) -> str:
    """Return the address of an arXiv reference, the only kind that becomes a link; "" for any other text."""
    arxiv = re.search(r"arXiv[:\s]\s*(\d{4}\.\d{4,5})\b", reference, re.ASCII)
    return f"https://arxiv.org/abs/{arxiv[1]}" if arxiv else ""


def index_row(place: Place) -> dict[str, Any]:
    """Return what the index sorts and filters by."""
    entry = place.entry
    rules = card_rules(entry)
    words = [place.board.name, place.board.title, entry.model, entry.card.title, place.board.dataset, place.verdict]
    return {
        "board": place.board.name,
        "dataset": place.board.dataset,
        "rules": rules,
        "verdict": place.verdict,
        "order": place.order,
        "rank": [place.ranked.best, place.ranked.worst],
        "model": entry.model,
        "clean": entry.scores.clean_accuracy,
        "worst": entry.scores.worst_case,
        "n": entry.n,
        "words": " ".join([*words, *rules]).lower(),
    }


def contest(board: Board, places: Iterable[Place]) -> dict[str, Any]:
    """Return what the comparison needs of a board: outcomes of every example, packed."""
    return {
        "name": board.name,
        "title": board.title,
        "threat": board_threat(board),
        "entries": [
            {
                "model": place.entry.model,
                "title": place.entry.card.title,
                "rank": place.ranked.rank,
                "page": place.page,
                "n": place.entry.n,
                "slice": place.entry.measurements[0].spec.data_sha256,
                "clean": place.entry.measurements[0].clean,
                "robust": pack(place.entry.robust_correct()),
            }
            for place in places
        ],
    }


def inlined(document: Any) -> Markup:
    """Return a document as JSON that may stand in a script element: nothing in it ends the element or a line."""
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        body = body.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(body)  # noqa: S704 - the signs that mean something in HTML are gone


def measured_rows(entry: Entry) -> list[dict[str, Any]]:
    """Return one row for each measurement, those that rank first."""
    rows = []
    for measured in sorted(entry.measurements, key=lambda m: not ranks(entry, m)):
        spec, count = measured.spec, int(bits(measured.robust, entry.n).sum())
        interval = plots.interval(count, entry.n)
        rows.append(
            {
                "ranks": ranks(entry, measured),
                "attack": spec.attack if spec.backend == "native" else f"{spec.attack} ({spec.backend})",
                "norm": spec.threat.norm,
                "eps": format_eps(spec.threat.eps, spec.threat.norm),
                "gradient": str(spec.gradient),
                "params": settings(measured) or NONE,
                "robust": percent(count / entry.n),
                "interval": bounds(interval),
                "bar": plots.interval_bar(count / entry.n, interval, 34),
                "queries": f"{measured.queries_mean:,.0f}",
                "seconds": f"{measured.seconds:,.1f}",
            }
        )
    return rows
