"""What the pages show of a board and its entries, as plain values: all that is decided before anything is drawn."""

import base64
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from robustbench_bio.leaderboard.ranking import RankedEntry
from robustbench_bio.records.board import Board
from robustbench_bio.records.entry import Entry, Gallery, Measured, pack
from robustbench_bio.records.genotype import SUFFIXES
from robustbench_bio.records.motifs import Motif, MotifGenotype, reduction_cells
from robustbench_bio.records.threat import format_eps
from robustbench_bio.report import drawing as circuits
from robustbench_bio.report import svg as pictures

#: What a network under `random:SEED` draws from; `rules.assign` says so too, but loads torch.
RANDOM_RULES = ("usf", "brsf", "frsf", "fa")

#: What an entry without a diagnosis says instead of a verdict.
UNDIAGNOSED = "undiagnosed"

#: What a missing number looks like.
NONE = "–"


class Place(NamedTuple):
    """An entry and where it stands.

    Attributes:
        board: its board.
        row: the entry and its rank range.
        order: its place from 0 in the board's order.
    """

    board: Board
    row: RankedEntry
    order: int

    @property
    def entry(self) -> Entry:
        """The entry."""
        return self.row.entry

    @property
    def page(self) -> str:
        """Path of its page, from the site's root."""
        return f"models/{self.board.name}/{self.entry.model}.html"

    @property
    def verdict(self) -> str:
        """The verdict, or that there is none."""
        return self.entry.finding.verdict if self.entry.finding else UNDIAGNOSED


class Image(NamedTuple):
    """One example of a gallery, pictures as data URIs."""

    id: int
    label: int
    prediction: int
    clean: str
    delta: str
    adversarial: str


class Key(NamedTuple):
    """A line of a legend: class of the style, text."""

    style: str
    text: str


def percent(share: float) -> str:
    """Return a fraction as a percentage with one decimal."""
    return f"{100 * share:.1f}"


def bounds(interval: tuple[float, float]) -> str:
    """Return an interval of fractions in percent."""
    return f"[{percent(interval[0])}, {percent(interval[1])}]"


def threat(board: Board) -> str:
    """Return a board's threat model as text."""
    return str(board.rank_by)


def bits(text: str, n: int) -> NDArray[np.bool_]:
    """Return n packed bits as bools [n]."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=n).astype(bool)


def ranks(entry: Entry, measured: Measured) -> bool:
    """Tell whether a measurement takes part in the worst case that ranks."""
    return measured.spec.threat == entry.rank_by


def rules_of(entry: Entry) -> list[str]:
    """Return the rules that a card assigns, each once; of `random:SEED` those that it draws from.

    A genotype of motifs prescribes none, so that its layers learn by bp where the card says no more.
    """
    found: dict[str, None] = {}
    cells = entry.genotype
    for term in entry.card.rule.split(","):
        name = term.rpartition("=")[2].strip()
        if name == "genotype" and cells:
            edges = () if isinstance(cells, MotifGenotype) else (*cells.normal, *cells.reduce)
            found |= dict.fromkeys([rule for op, _ in edges if (rule := circuits.edge_rule(op))] or ["bp"])
        elif name.startswith("random:"):
            drawn = name.split(":")[2:]
            found |= dict.fromkeys(drawn[0].split("+") if drawn else RANDOM_RULES)
        else:
            found[name] = None
    return list(found)


def one_rule(entry: Entry) -> str:
    """Return the rule that the card gives to every edge of its cells; "" where the genotype decides."""
    rule = entry.card.rule.strip()
    if rule == "genotype":
        return ""
    return rule if rule in SUFFIXES else circuits.UNTOLD


def cells(entry: Entry) -> list[tuple[str, Markup]]:
    """Return title and picture of each cell or circuit; nothing for a network without cells."""
    cells = entry.genotype
    if cells is None:
        return []
    if isinstance(cells, MotifGenotype):
        return [(title, circuits.motif(motif, f"{title}, {cells.name}")) for title, motif in _motifs(entry, cells)]
    rule = one_rule(entry)
    shown = {"Normal cell": (cells.normal, cells.normal_concat), "Reduction cell": (cells.reduce, cells.reduce_concat)}
    return [(title, circuits.cell(*parts, f"{title} of {cells.name}", rule)) for title, parts in shown.items()]


def _reductions(entry: Entry, genotype: MotifGenotype) -> frozenset[int]:
    """Return which cells halve the map; the card says how images are coded."""
    nets = (entry.card.net, *(network.net for network in entry.card.datasets.values()))
    frames = any(net.get("coding") == "frames" for net in nets)
    return reduction_cells(len(genotype.cells), "frames" if frames else "direct")


def _motifs(entry: Entry, genotype: MotifGenotype) -> list[tuple[str, Motif]]:
    """Return every motif that stands somewhere, with the cells in which it does."""
    halve, places = _reductions(entry, genotype), dict[Motif, list[int]]()
    for i, motif in enumerate(genotype.cells):
        if i not in halve:
            places.setdefault(motif, []).append(i)
    return [
        (f"Cell{'s' if len(at) > 1 else ''} {', '.join(map(str, at))}: {motif.name}", motif)
        for motif, at in places.items()
    ]


def wiring(entry: Entry) -> str:
    """Return in words how the cells of motifs follow each other; "" for other networks."""
    genotype = entry.genotype
    if not isinstance(genotype, MotifGenotype):
        return ""
    halve = _reductions(entry, genotype)
    order = " → ".join("halving" if i in halve else f"{i}: {motif.name}" for i, motif in enumerate(genotype.cells))
    return (
        f"stem → {order} → classifier. Each cell reads the last {genotype.inputs} outputs, the stem's where there are "
        "not that many yet. A node is the sum of its links; feedback adds to an earlier state, for what comes after; "
        "the nodes side by side are the output."
    )


def cell_keys(entry: Entry) -> list[Key]:
    """Return the legend of the cells: every rule that owns an edge, or sign of a link, then what has no weights."""
    genotype = entry.genotype
    if genotype is None:
        return []
    if isinstance(genotype, MotifGenotype):
        return _link_keys([motif for _, motif in _motifs(entry, genotype)])
    ops = [op for op, _ in (*genotype.normal, *genotype.reduce)]
    owners = list(dict.fromkeys(circuits.edge_rule(op, one_rule(entry)) for op in ops))
    texts = {circuits.UNTOLD: f"as the card assigns: {entry.card.rule}"}
    keys = [Key(f"r-{rule}", texts.get(rule, rule)) for rule in sorted(filter(None, owners))]
    return keys + ([Key("r-none", "without weights")] if "" in owners else [])


def _link_keys(motifs: Sequence[Motif]) -> list[Key]:
    links = [link for motif in motifs for link in (*motif.links, *motif.feedback) if link.op != "none"]
    styles = {circuits.link_style(link.op) for link in links}
    texts = {"s-p": "excites", "s-n": "inhibits", "s-any": "excites or inhibits", "r-none": "without weights"}
    keys = [Key(style, text) for style, text in texts.items() if style in styles]
    fed_back = any(link.op != "none" for motif in motifs for link in motif.feedback)
    return keys + ([Key("feedback s-any", "feedback")] if fed_back else [])


def settings(measured: Measured) -> str:
    """Return an attack's parameters as text, without those left to the attack."""
    texts = (
        f"{name} {json.dumps(v) if isinstance(v, bool) else f'{v:,}' if isinstance(v, int) else v}"
        for name, v in measured.spec.params.items() if v is not None
    )  # fmt: skip
    return ", ".join(texts)


def curves(entry: Entry) -> list[pictures.Curve]:
    """Return every attack that was run at several radii, with its gradients."""
    clean = pictures.Point(0.0, int(bits(entry.measurements[0].clean, entry.n).sum()), entry.n)
    found: dict[tuple[str, ...], dict[str, list[pictures.Point]]] = {}
    for measured in entry.measurements:
        spec = measured.spec
        if spec.threat.eps > 0:
            key = (spec.threat.norm, spec.attack, spec.backend, repr(sorted(spec.params.items())), settings(measured))
            points = found.setdefault(key, {}).setdefault(str(spec.gradient), [clean])
            points.append(pictures.Point(spec.threat.eps, int(bits(measured.robust, entry.n).sum()), entry.n))
    many = {key: lines for key, lines in found.items() if len({p.eps for ps in lines.values() for p in ps}) > 2}
    return [
        pictures.Curve(
            ", ".join(filter(None, (attack, "" if backend == "native" else backend, text))),
            norm,
            {gradient: sorted(points) for gradient, points in lines.items()},
        )
        for (norm, attack, backend, _, text), lines in many.items()
    ]


def curve_keys(curve: pictures.Curve) -> list[Key]:
    """Return the legend of a curve, the exact gradient first."""
    names = sorted(curve.lines, key=lambda name: (name != "exact", name != "rule", name))
    return [Key(pictures.gradient_style(name), f"{name} gradient") for name in names]


def largest_gap(curve: pictures.Curve) -> str:
    """Return in one sentence where the rules' gradient flatters most; "" without both gradients."""
    exact = {point.eps: point for point in curve.lines.get("exact", [])}
    gaps = [
        ((rule.stands - exact[rule.eps].stands) / rule.n, rule.eps)
        for rule in curve.lines.get("rule", []) if rule.eps and rule.eps in exact
    ]  # fmt: skip
    if not gaps:
        return ""
    gap, eps = max(gaps)
    where = f"at {curve.norm} {format_eps(eps, curve.norm)}"
    if gap <= 0:
        return "Nowhere does the rules’ gradient leave more examples standing than the exact one."
    return f"The rules’ gradient leaves up to {100 * gap:.1f} points more standing than the exact one ({where})."


def images(gallery: Gallery | None) -> list[Image]:
    """Return a gallery's examples; nothing where its shape is none of an image."""
    if gallery is None or min(gallery.shape) < 1 or not gallery.ids:
        return []
    shape = (len(gallery.ids), *gallery.shape)
    clean = np.frombuffer(base64.b64decode(gallery.x), dtype=np.uint8).reshape(shape)
    delta = np.frombuffer(base64.b64decode(gallery.delta), dtype=np.int8).reshape(shape).astype(np.int16)
    adversarial = np.rint(clean + delta * (gallery.eps * 255 / 127)).clip(0, 255).astype(np.uint8)
    grey = (128 + delta).clip(0, 255).astype(np.uint8)
    rows = zip(gallery.ids, gallery.labels, gallery.predictions, clean, grey, adversarial, strict=True)
    return [Image(i, y, p, *map(pictures.png, three)) for i, y, p, *three in rows]


def magnified(gallery: Gallery) -> str:
    """Return how many times larger a perturbation is drawn than it is: eps takes half the range."""
    return f"{127 / (255 * gallery.eps):.3g}"


def followed(entry: Entry) -> str:
    """Return what the gallery's attack followed: the exact, or for a network with thresholds a surrogate."""
    soft = any(measured.spec.gradient.surrogate for measured in entry.measurements)
    return "a surrogate" if soft else "the exact"


def text(value: Any) -> str:
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
    return ", ".join(map(text, value))


def fields(document: dict[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield every field of nested tables as dotted name and text."""
    for name, value in document.items():
        if isinstance(value, dict) and value:
            yield from fields(value, f"{before}{name}.")
        else:
            yield before + name, text(value)


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
    found = re.search(r"arXiv[:\s]\s*(\d{4}\.\d{4,5})\b", reference, re.ASCII)
    return f"https://arxiv.org/abs/{found[1]}" if found else ""


def row(place: Place) -> dict[str, Any]:
    """Return what the index sorts and filters by."""
    entry = place.entry
    rules = rules_of(entry)
    words = [place.board.name, place.board.title, entry.model, entry.card.title, place.board.dataset, place.verdict]
    return {
        "board": place.board.name,
        "dataset": place.board.dataset,
        "rules": rules,
        "verdict": place.verdict,
        "order": place.order,
        "rank": [place.row.best, place.row.worst],
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
        "threat": threat(board),
        "entries": [
            {
                "model": place.entry.model,
                "title": place.entry.card.title,
                "rank": place.row.rank,
                "page": place.page,
                "n": place.entry.n,
                "slice": place.entry.measurements[0].spec.data_sha256,
                "clean": place.entry.measurements[0].clean,
                "stands": pack(place.entry.robust_correct()),
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
    found = []
    for measured in sorted(entry.measurements, key=lambda m: not ranks(entry, m)):
        spec, count = measured.spec, int(bits(measured.robust, entry.n).sum())
        interval = pictures.interval(count, entry.n)
        found.append(
            {
                "ranks": ranks(entry, measured),
                "attack": spec.attack if spec.backend == "native" else f"{spec.attack} ({spec.backend})",
                "norm": spec.threat.norm,
                "eps": format_eps(spec.threat.eps, spec.threat.norm),
                "gradient": str(spec.gradient),
                "params": settings(measured) or NONE,
                "robust": percent(count / entry.n),
                "interval": bounds(interval),
                "bar": pictures.bar(count / entry.n, interval, 34),
                "queries": f"{measured.queries_mean:,.0f}",
                "seconds": f"{measured.seconds:,.1f}",
            }
        )
    return found
