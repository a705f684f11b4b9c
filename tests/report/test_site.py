"""The static site: built from real records, read back as a browser reads it."""

import hashlib
import json
import random
import re
import shutil
import struct
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.stats import mcnemar
from robustbench_bio.leaderboard.ranking import rank_entries
from robustbench_bio.records.board import Board
from robustbench_bio.records.card import NEWS, ModelCard, Recipe, TrainedNet
from robustbench_bio.records.entry import Entry, Finding, Gallery, Measured, pack, scored
from robustbench_bio.records.genotype import Genotype
from robustbench_bio.records.gradient import Gradient
from robustbench_bio.records.motif_space import MotifSpace
from robustbench_bio.records.motifs import Motif, MotifGenotype, parse_link
from robustbench_bio.records.result import EvalSpec, Provenance
from robustbench_bio.records.threat import Threat
from robustbench_bio.report import drawing as cell_drawing
from robustbench_bio.report import motif_drawing, site
from robustbench_bio.report.rendering import svg
from robustbench_bio.report.site import cells as cell_views
from robustbench_bio.report.site import gallery, plots, views
from robustbench_bio.zoo import catalog

CURVE = (1, 2, 4, 8, 16, 32)
N = 120

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def board(name: str = "digits-linf", **changes: Any) -> Board:
    fields = {
        "name": name, "title": f"Board {name}", "summary": "First of the split.", "dataset": "digits", "n_examples": N,
        "preset": "standard", "curve": "eps-curve", "rank_by": Threat("linf", 8 / 255),
    }  # fmt: skip
    return Board(**fields | changes)


def card_of(model: str, **changes: Any) -> ModelCard:
    fields = {
        "id": model, "title": f"Network {model}", "rule": "bp", "net": {"name": "mlp", "hidden": [32]},
        "datasets": {"digits": TrainedNet(recipe=Recipe(epochs=2))},
    }  # fmt: skip
    return ModelCard(**fields | changes)


def measurements(model: str, contest: Board, strength: float, seed: int, *, masked: bool) -> list[Measured]:
    """Return what a network leaves whose examples each fall at a radius of their own, later through the rules."""
    draw = random.Random(seed)  # noqa: S311
    n = contest.n_examples
    falls = [draw.gauss(strength, 0.03) for _ in range(n)]
    clean = [radius > 0 for radius in falls]

    def measured(attack: str, norm: str, eps: float, gradient: str, stands: list[bool], **params: Any) -> Measured:
        spec = EvalSpec(
            model=model, network_sha256=hashlib.sha256(model.encode()).hexdigest(), dataset=contest.dataset,
            split="test", n=n, data_sha256=hashlib.sha256(contest.dataset.encode()).hexdigest(), attack=attack,
            params=params, threat=Threat(norm, eps), gradient=Gradient.read(gradient), precision="float32", seed=0,
        )  # fmt: skip
        queries = 100.0 * draw.random()
        return Measured(spec=spec, clean=pack(clean), robust=pack(stands), queries_mean=queries, seconds=1.5)

    found = [
        measured("autoattack", "linf", 8 / 255, "exact", [r > 8.2 / 255 for r in falls], version="standard"),
        measured("square", "linf", 8 / 255, "exact", [r > 6 / 255 for r in falls], queries=5000),
        measured("one-pixel", "l0", 1.0, "exact", [r > 0.01 for r in falls], population=400),
    ]
    for steps in CURVE:
        eps = steps / 255
        stands = {"exact": [r > eps for r in falls], "rule": [r > (0.6 * eps if masked else eps) for r in falls]}
        settings = {"steps": 20, "step_size": None, "random_start": True}
        found += [measured("pgd", "linf", eps, gradient, stands[gradient], **settings) for gradient in stands]
    return found


def gallery_of(shape: tuple[int, int, int], n: int = 6, seed: int = 0) -> Gallery:
    draw = np.random.default_rng(seed)
    x = draw.integers(0, 256, (n, *shape), dtype=np.uint8)
    delta = draw.choice([-127, 0, 127], (n, *shape)).astype(np.int8)
    return Gallery(
        eps=8 / 255, shape=shape, ids=list(range(n)), labels=[i % 10 for i in range(n)],
        predictions=[(i + i % 3) % 10 for i in range(n)], x=b64encode(x.tobytes()).decode(),
        delta=b64encode(delta.tobytes()).decode(),
    )  # fmt: skip


def entry(
    model: str = "tiny", contest: Board | None = None, strength: float = 0.05, seed: int = 0, **changes: Any
) -> Entry:
    contest = contest or board()
    card = changes.pop("card", None) or card_of(model)
    verdict = changes.pop("verdict", "sound")
    found = measurements(model, contest, strength, seed, masked=verdict == "masked")
    reason = (
        "no check speaks against it"
        if verdict == "sound"
        else "rule-far-above-exact: pgd through the rule leaves 80.0 %"
    )
    fields = {
        "board": contest.name, "model": model, "card": card, "card_sha256": card.sha256(), "weights_sha256": "a" * 64,
        "measurements": found, "rank_by": contest.rank_by,
        "scores": scored(found, contest.rank_by),
        "finding": Finding(verdict=verdict, reason=reason, flags=["rule-far-above-exact"] * (verdict != "sound"), n=64),
        "gallery": gallery_of((1, 8, 8), seed=seed), "commit": "0123abc",
        "facts": {"parameters": 16338.0, "MACs per example": 1234567.0, "energy": "5,678 pJ"},
        "provenance": Provenance(
            seconds=12.0, device="cpu", created="2026-11-22T09:04:05+00:00", packages={"torch": "2.15.0"}
        ),
    }  # fmt: skip
    return Entry(**fields | changes)


def zoo_entry(name: str, contest: Board, strength: float, seed: int, verdict: str) -> Entry:
    card = catalog.card(name)
    cells = catalog.genotype(str(card.net["genotype"])) if "genotype" in card.net else None
    return entry(name, contest, strength, seed, card=card, genotype=cells, verdict=verdict)


NASTY = '<script>alert(1)</script>"><img src=x onerror=alert(1)>\u2028{{ 7 * 7 }} \u202eoof'


def nasty(contest: Board) -> Entry:
    """Return an entry that says something dangerous wherever it holds a text, also where records refuse it."""
    card = card_of("zz-nasty", datasets={"digits": TrainedNet(recipe=Recipe())}).model_copy(
        update={"title": NASTY, "summary": NASTY, "reference": NASTY, "licence": NASTY, "rule": f"bp,{NASTY}=usf",
                "net": {"name": NASTY, NASTY: NASTY},
                "datasets": {"digits": TrainedNet(recipe=Recipe()).model_copy(update={"trained_on": NASTY})}},
    )  # fmt: skip
    cells = catalog.genotype("biodarts").model_copy(update={"source": NASTY})
    finding = Finding(verdict="masked", reason="", n=3).model_copy(update={"reason": NASTY, "flags": [NASTY]})
    provenance = Provenance(seconds=1.0, device=NASTY, created=NASTY, packages={NASTY: NASTY}, notices=[NASTY])
    found = entry("zz-nasty", contest, 0.01, 5)
    first = found.measurements[0]
    evil = first.model_copy(update={"spec": first.spec.model_copy(update={"params": {NASTY: NASTY}})})
    return found.model_copy(
        update={"card": card, "genotype": cells, "finding": finding, "provenance": provenance, "commit": NASTY,
                "facts": {NASTY: NASTY}, "measurements": [evil, *found.measurements[1:]]},
    )  # fmt: skip


def two_boards() -> dict[str, tuple[Board, list[Entry]]]:
    first, second = board(), board("cifar10-linf", dataset="cifar10", n_examples=203)
    zoo = [
        ("bionas-darts", 0.06, 1, "masked"), ("bp-darts", 0.063, 2, "sound"), ("usf-darts", 0.055, 3, "masked"),
        ("random-darts", 0.06, 4, "inconclusive"), ("bp-resnet20", 0.08, 6, "sound"),
    ]  # fmt: skip
    entries = [zoo_entry(name, first, strength, seed, verdict) for name, strength, seed, verdict in zoo]
    others = [entry(name, second, 0.02 + 0.02 * i, i) for i, name in enumerate(("tiny", "bp-darts"))]
    others[0] = others[0].model_copy(update={"gallery": gallery_of((3, 6, 5)), "finding": None})
    return {"digits-linf": (first, [*entries, nasty(first)]), "cifar10-linf": (second, others)}


class Page(HTMLParser):
    """A page as a reader of HTML sees it: elements, links, visible text and ids."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.bodies: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        for tag in self.inside[-1:]:
            self.bodies.setdefault(tag, []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def ids(self) -> set[str]:
        return {str(attributes["id"]) for _, attributes in self.tags if "id" in attributes}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "out"
    site.build_site(two_boards(), out)
    return out


@pytest.fixture(scope="module")
def pages(built: Path) -> dict[str, Page]:
    return {path.relative_to(built).as_posix(): Page(path.read_text("utf-8")) for path in built.rglob("*.html")}


def test_every_link_leads_to_a_file_and_every_anchor_to_an_element(built: Path, pages: dict[str, Page]) -> None:
    followed = set()
    for name, page in pages.items():
        for attributes in [*page.all("a"), *page.all("img"), *page.all("link")]:
            address = urlsplit(str(attributes.get("href") or attributes.get("src") or ""))
            if address.scheme in {"data", "https"}:
                continue
            target = (built / name).parent / unquote(address.path) if address.path else built / name
            assert target.is_file(), (name, address)
            if address.fragment and "=" not in address.fragment:
                assert address.fragment in page.ids
            followed.add(target.resolve().relative_to(built).as_posix())
    # The two pages of names that everybody may read reach every other file.
    written = {path.relative_to(built).as_posix() for path in built.rglob("*") if path.is_file()}
    assert followed == written - {site.MARKER}


def test_no_page_asks_a_network_for_anything(built: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        head = [tag for tag, _ in page.tags]
        policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
        assert policy is not None
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
        assert rules["default-src"] == "'none'"
        assert rules["img-src"] == "data:"
        assert head.index("meta") < head.index("style")
        scripts = [a for a in page.all("script") if a.get("type") != "application/json"]
        assert all("src" not in attributes for attributes in page.all("script"))
        assert len(scripts) == (name in {"index.html", "compare.html"})
        text = (built / name).read_text("utf-8")
        for kind in ("style", "script"):
            bodies = [part.split(f"</{kind}>")[0] for part in text.split(f"<{kind}>")[1:]]
            digests = [b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies]
            assert rules[f"{kind}-src"] == (" ".join(f"'sha256-{digest}'" for digest in digests) or "'none'")
        assert "url(" not in "".join(page.bodies["style"])
        assert "@import" not in "".join(page.bodies["style"])
        for tag, attributes in page.tags:
            # The policy would silently drop both.
            assert not any(key == "style" or key.startswith("on") for key in attributes)
            for key in ("src", "href"):
                value = str(attributes.get(key) or "")
                outside = "//" in value and not value.startswith("data:")
                assert not outside or (tag == "a" and value.startswith("https://arxiv.org/abs/"))


def test_what_a_card_says_is_text_wherever_it_stands(built: Path, pages: dict[str, Page]) -> None:
    page = pages["models/digits-linf/zz-nasty.html"]
    assert {str(a["src"])[:22] for a in page.all("img")} == {"data:image/png;base64,"}
    assert page.all("script") == []
    told = [text for bodies in page.bodies.values() for text in bodies]
    # Title, summary, genotype's source, reason, flag, two facts, card and provenance.
    assert sum(NASTY in text for text in told) >= 12
    assert not any("49" in text and "img" in text for text in told)
    index = pages["index.html"]
    assert index.all("img") == []
    # No longer than fits, and not cut within an escape.
    assert any(text.startswith(NASTY[:40]) for text in index.bodies["bdi"])
    assert [a.get("type") for a in index.all("script")] == ["application/json", None]
    for name in ("index.html", "compare.html"):
        (data,) = (t for t in pages[name].bodies["script"] if t.startswith("["))
        assert NASTY.lower() in json.dumps(json.loads(data), ensure_ascii=False).lower().replace('\\"', '"')
        raw = (built / name).read_text("utf-8").split('type="application/json"')[1].split("</script>")[0]
        assert not {"<", "&", "\u2028"} & set(raw.partition(">")[2])


def test_the_index_shows_what_the_entries_say(pages: dict[str, Page]) -> None:
    text = " ".join(t.strip() for t in pages["index.html"].bodies["strong"] + pages["index.html"].bodies["a"])
    data = json.loads(next(t for t in pages["index.html"].bodies["script"] if t.startswith("[")))
    boards = two_boards()
    assert len(data) == sum(len(entries) for _, entries in boards.values())
    for contest, entries in boards.values():
        mine = [row for row in data if row["board"] == contest.name]
        assert [row["model"] for row in mine] == [row.entry.model for row in rank_entries(entries)]
        for one in entries:
            row = next(row for row in mine if row["model"] == one.model)
            counted = [m.robust_correct() for m in one.measurements if m.spec.threat == Threat("linf", 8 / 255)]
            stands = [all(outcomes) for outcomes in zip(*counted, strict=True)]
            assert row["worst"] == sum(stands) / one.n
            assert row["clean"] == sum(one.measurements[3].clean_correct()) / one.n
            assert f"{100 * sum(stands) / one.n:.1f}" in text
            assert one.model in text


def test_rules_are_read_off_the_card() -> None:
    contest = board()
    expected = {
        "bionas-darts": {"usf", "frsf"}, "usf-darts": {"usf"}, "bp-resnet20": {"bp"},
        "random-darts": {"usf", "brsf", "frsf", "fa"}, "random-resnet20": {"usf", "frsf", "brsf"},
    }  # fmt: skip
    for name, rules in expected.items():
        assert set(cell_views.card_rules(zoo_entry(name, contest, 0.05, 0, "sound"))) == rules


def test_rules_drawn_at_random_are_those_of_the_assignment() -> None:
    from robustbench_bio.rules.assign import _drawn

    contest = board()
    one = zoo_entry("random-darts", contest, 0.05, 0, "sound")
    for rule in ("random:3", "random:3:usf+bp"):
        card = one.card.model_copy(update={"rule": rule})
        assert set(cell_views.card_rules(one.model_copy(update={"card": card}))) == set(_drawn(rule, 500))


def test_a_page_shows_every_field_of_the_card_and_every_measurement(pages: dict[str, Page]) -> None:
    page = pages["models/digits-linf/bionas-darts.html"]
    names, values = ("".join(page.bodies[tag]) for tag in ("dt", "bdi"))
    card = catalog.card("bionas-darts")
    for name in (*ModelCard.model_fields, *TrainedNet.model_fields, *Recipe.model_fields):
        if name not in {"datasets", "recipe", *NEWS}:  # what is not in the card's text is not on its page
            assert name in names
    told = (card.title, card.summary, card.reference, card.licence, str(card.datasets["digits"].weights_sha256))
    assert all(value in values for value in told)
    one = next(e for e in two_boards()["digits-linf"][1] if e.model == "bionas-darts")
    shown = [float(text) for text in page.bodies["strong"] if text.replace(".", "").isdigit() and "." in text]
    assert sorted(shown) == sorted(round(100 * m.robust_accuracy, 1) for m in one.measurements)
    assert page.bodies["abbr"] == ["*"] * 4  # AutoAttack, Square, and PGD at 8/255 through both gradients


def test_the_entry_lies_beside_its_page(built: Path) -> None:
    boards = two_boards()
    for name, (_, entries) in boards.items():
        for one in entries:
            text = (built / "models" / name / f"{one.model}.json").read_text("utf-8")
            assert json.loads(text) == one.model_dump(mode="json")
            if one.model != "zz-nasty":  # which records refuse
                assert Entry.from_json(text, "entry") == one


class Drawing(HTMLParser):
    """The paths of an SVG by class, and its boxes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {key: str(value) for key, value in attrs}))

    def of(self, style: str) -> list[dict[str, str]]:
        return [attributes for _, attributes in self.found if attributes.get("class", "").split()[:1] == [style]]


CELLS = [name for name in catalog.genotype_names() if isinstance(catalog.any_genotype(name), Genotype)]


@pytest.mark.parametrize("name", [*CELLS, "largest"])
def test_no_line_of_a_cell_passes_behind_a_box(name: str) -> None:
    if name == "largest":  # every node sees the first input and the one before
        edges = [e for i in range(12) for e in (("sep_conv_3x3_u", 0), ("skip_connect_f", i + 1))]
        cells = Genotype(
            name="largest", source="", normal=edges, normal_concat=range(14), reduce=edges, reduce_concat=[13]
        )
    else:
        cells = catalog.genotype(name)
    for edges, concat in ((cells.normal, cells.normal_concat), (cells.reduce, cells.reduce_concat)):
        drawing = Drawing(svg(cell_drawing.cell(edges, concat), "cell"))
        boxes = [[float(a[key]) for key in ("x", "y", "width", "height")] for a in drawing.of("box")]
        paths = drawing.of("edge")
        assert (len(paths), len(boxes), len(drawing.of("concat"))) == (len(edges), len(edges) // 2 + 3, len(concat))
        for place, (path, (_, state)) in enumerate(zip(paths, edges, strict=True)):
            start, _, rest = path["d"][1:].partition("H")
            (x0, y0), drop = map(float, start.split()), float(rest.partition("q")[0]) + 6
            y1, x1 = float(rest.partition("V")[2].partition("q")[0]) + 6, float(rest.rpartition("H")[2]) + 6
            left, top, width, height = boxes[state]
            assert (x0, x1) == (left + width, boxes[place // 2 + 2][0])
            assert top < y0 < top + height
            assert boxes[place // 2 + 2][1] < y1 < sum(boxes[place // 2 + 2][1::2])
            for bx, by, bw, bh in boxes:
                assert not (max(bx, x0) < min(bx + bw, drop) and by <= y0 <= by + bh)  # along its lane
                assert not (bx <= drop <= bx + bw and max(by, y0) < min(by + bh, y1))  # down
        lanes = [path["d"].split("H")[0] for path in [*paths, *drawing.of("concat")]]
        assert len(set(lanes)) == len(lanes)


def with_feedback(nodes: int = 12, inputs: int = 4) -> Motif:
    """Return the largest motif: every node reads the inputs and the node before, feeds back to places of all kinds."""
    links = [
        [("conv_3x3_p", 0), ("conv_5x5_n", i + inputs - 1), ("none", 1), ("skip_connect", 2)] for i in range(nodes)
    ]
    back = [("conv_5x5_n" if i % 2 else "skip_connect", (5 * i) % (inputs + i)) for i in range(1, nodes)]
    return Motif(name="large", nodes=links, feedback=back)


@pytest.mark.parametrize("name", ["mm3", "m3", "m5", "t3-ours", "t5", "m0", "large"])
def test_no_line_of_a_motif_passes_behind_a_box(name: str) -> None:
    space = catalog.space("mse-nas")
    assert isinstance(space, MotifSpace)
    {one.name: one.motif for one in space.motifs if not one.malformed}
    motif = with_feedback() if name == "large" else next(listed.motif for listed in space.motifs if listed.name == name)
    drawing = Drawing(svg(motif_drawing.motif_circuit(motif), "motif"))
    boxes = [[float(a[key]) for key in ("x", "y", "width", "height")] for a in drawing.of("box")]
    links = [(i, link) for i, node in enumerate(motif.nodes) for link in node if link.op != "none"]
    back = [(i, link) for i, link in enumerate(motif.feedback, 1) if link.op != "none"]
    paths = drawing.of("edge")
    assert len(boxes) == motif.inputs + len(motif.nodes) + 1
    assert (len(paths), len(drawing.of("tip"))) == (len(links) + len(back), len(links) + len(back))
    (root,) = [a for tag, a in drawing.found if tag == "svg"]
    for path, (node, link) in zip(paths, [*links, *back], strict=True):
        corners = corners_of(path["d"])
        xs, ys = zip(*corners, strict=True)
        assert min(xs) > 0
        assert max(ys) < float(root["height"])
        source, target = boxes[link.state], boxes[motif.inputs + node]
        if "feedback" in path["class"]:
            source, target = target, source
        assert touches(corners[0], source)
        assert touches(corners[-1], target, 6.5)
        for a, b in pairwise(corners):
            assert not any(crosses(a, b, box) for box in boxes), (path["d"], boxes)
        kind = parse_link(link.op)
        assert {"p": "s-p", "n": "s-n", "": "s-any"}[kind.sign] in path["class"] or not kind.kernel
    starts = [path["d"].split("H")[0] for path in [*paths, *drawing.of("concat")]]
    assert len(set(starts)) == len(starts)


def corners_of(path: str) -> list[tuple[float, float]]:
    """Return the corners of a path of M, H, V and roundings by q, which are taken for corners."""
    found: list[tuple[float, float]] = []
    for letter, numbers in re.findall(r"([MHVq])([-\d. ]+)", path):
        values = [float(number) for number in numbers.split()]
        x, y = found[-1] if found else (0.0, 0.0)
        end = {"M": values[:2], "H": [values[0], y], "V": [x, values[0]], "q": [x + values[-2], y + values[-1]] if
               letter == "q" else []}[letter]  # fmt: skip
        found.append((end[0], end[1]))
    return found


def touches(point: tuple[float, float], box: list[float], near: float = 0.01) -> bool:
    (x, y), (left, top, width, height) = point, box
    inside = left - near <= x <= left + width + near and top - near <= y <= top + height + near
    return inside and not (left < x < left + width and top < y < top + height)


def crosses(a: tuple[float, float], b: tuple[float, float], box: list[float]) -> bool:
    left, top, width, height = box
    (x0, x1), (y0, y1) = sorted((a[0], b[0])), sorted((a[1], b[1]))
    return max(left, x0) < min(left + width, x1 + 1e-9) and max(top, y0) < min(top + height, y1 + 1e-9)


def test_motifs_are_drawn_where_they_stand_with_a_legend_of_their_signs() -> None:
    space = catalog.space("mse-nas")
    assert isinstance(space, MotifSpace)
    motifs = {one.name: one.motif for one in space.motifs if not one.malformed}
    names = ["m3", "m2", "m2", "m3", "m3", "m2"]  # of these, 1, 3 and 4 halve the map
    cells = MotifGenotype(name="some", source="", inputs=3, cells=tuple(motifs[name] for name in names))
    cells = cells.model_copy(update={"source": NASTY})
    card = card_of("spiking", net={"name": "motifs", "genotype": "some"})
    one = entry("spiking", card=card).model_copy(update={"genotype": cells})
    assert [title for title, _ in cell_views.cell_drawings(one)] == ["Cell 0: m3", "Cells 2, 5: m2"]
    assert cell_views.wiring(one).startswith("stem → 0: m3 → halving → 2: m2 → halving → halving → 5: m2 → classifier.")
    keys = {key.style: key.text for key in cell_views.cell_keys(one)}
    assert keys == {"s-p": "excites", "s-n": "inhibits", "feedback s-any": "feedback"}
    drawn = "".join(picture for _, picture in cell_views.cell_drawings(one))
    assert "↩ conv_3x3_n" in drawn
    assert {a["class"].split()[-1] for a in Drawing(drawn).of("edge")} == {"s-p", "s-n"}
    events = card.model_copy(update={"net": {**card.net, "coding": "frames"}})
    assert [title for title, _ in cell_views.cell_drawings(one.model_copy(update={"card": events}))] == [
        "Cells 0, 4: m3", "Cell 2: m2",
    ]  # fmt: skip
    assert cell_views.card_rules(one) == ["bp"]
    assert cell_views.card_rules(one.model_copy(update={"card": card.model_copy(update={"rule": "genotype"})})) == [
        "bp"
    ]
    assert cell_views.wiring(zoo_entry("bp-darts", board(), 0.05, 0, "sound")) == ""


def test_edges_are_coloured_by_the_rule_that_owns_them() -> None:
    contest = board()

    def owners(name: str) -> list[str]:
        one = zoo_entry(name, contest, 0.05, 0, "sound")
        drawn = [Drawing(picture) for _, picture in cell_views.cell_drawings(one)]
        keys = {key.style for key in cell_views.cell_keys(one)}
        found = [a["class"].split()[1] for drawing in drawn for a in drawing.of("edge")]
        assert set(found) == keys
        return sorted(found)

    # As in the genotype's file: 3 of its edges are usf in the normal cell and 2 in the other, and so on.
    assert owners("bionas-darts") == ["r-frsf"] * 5 + ["r-none"] * 7 + ["r-usf"] * 4
    assert owners("usf-darts") == ["r-none"] * 7 + ["r-usf"] * 9
    assert owners("random-darts") == ["r-none"] * 7 + ["r-untold"] * 9
    assert cell_views.cell_drawings(zoo_entry("bp-resnet20", contest, 0.05, 0, "sound")) == []


def test_a_curve_has_both_gradients_at_their_heights() -> None:
    one = entry(verdict="masked")
    (found,) = views.entry_curves(one)
    drawing = Drawing(plots.curve_plot(found))
    ticks = {a["d"] for a in drawing.of("grid")}
    heights = sorted(float(d.split()[1].partition("H")[0]) for d in ticks)
    top, floor = heights[0], heights[-1]
    for gradient in ("exact", "rule"):
        dots = [a for a in drawing.of("dot") if a["class"] == f"dot g-{gradient}"]
        asked = [m for m in one.measurements if m.spec.attack == "pgd" and str(m.spec.gradient) == gradient]
        clean = sum(one.measurements[0].clean_correct()) / one.n
        shares = [clean, *(m.robust_accuracy for m in sorted(asked, key=lambda m: m.spec.threat.eps))]
        assert [float(a["cy"]) for a in dots] == pytest.approx([floor - s * (floor - top) for s in shares], abs=0.1)
        across = [float(a["cx"]) for a in dots]
        steps = np.diff(across)
        assert steps.min() > 0
        assert steps.max() - steps.min() < 0.3  # each radius doubles the one before
    gaps = [
        rule.robust_accuracy - exact.robust_accuracy
        for rule, exact in zip(*([m for m in one.measurements if str(m.spec.gradient) == g and m.spec.attack == "pgd"]
                                 for g in ("rule", "exact")), strict=True)
    ]  # fmt: skip
    assert f"up to {100 * max(gaps):.1f} points" in views.largest_gap(found)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 5), (3, 1, 1), (2, 4, 4)])
def test_pictures_of_examples_are_what_was_packed(shape: tuple[int, int, int]) -> None:
    from io import BytesIO

    from PIL import Image

    def pixels(address: str) -> Any:
        with Image.open(BytesIO(b64decode(address.removeprefix("data:image/png;base64,")))) as image:
            image.load()
            return np.asarray(image, dtype=np.int64).reshape(*shape[1:], -1)

    packed = gallery_of(shape)
    x = np.frombuffer(b64decode(packed.x), np.uint8).reshape(6, *shape).transpose(0, 2, 3, 1).astype(np.int64)
    delta = np.frombuffer(b64decode(packed.delta), np.int8).reshape(6, *shape).transpose(0, 2, 3, 1)
    if shape[0] != 3:
        x, delta = x[..., :1], delta[..., :1]
    for i, image in enumerate(gallery.images(packed)):
        assert (pixels(image.clean) == x[i]).all()
        assert (pixels(image.delta) == 128 + delta[i].astype(np.int64)).all()
        assert (pixels(image.adversarial) == np.clip(x[i] + 8 * np.sign(delta[i].astype(np.int64)), 0, 255)).all()


def test_a_gallery_of_no_image_is_left_out() -> None:
    odd = gallery_of((1, 8, 8)).model_copy(update={"shape": (-8, -8, 1)})
    assert gallery.images(odd) == []
    assert gallery.images(None) == []


def test_png_agrees_with_its_checksums() -> None:
    data = b64decode(gallery.png(np.arange(12, dtype=np.uint8).reshape(1, 3, 4)).partition(",")[2])
    place, kinds = 8, []
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        chunk = data[place + 4 : place + 8 + size]
        assert zlib.crc32(chunk) == struct.unpack(">I", data[place + 8 + size : place + 12 + size])[0]
        kinds.append(chunk[:4])
        place += 12 + size
    assert kinds == [b"IHDR", b"IDAT", b"IEND"]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_equal_boards_make_equal_sites_and_progress_ends(built: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    paths = site.build_site(two_boards(), tmp_path / "out", lambda *step: told.append(step))
    assert contents(tmp_path / "out") == contents(built)
    assert {path.relative_to(tmp_path / "out").as_posix() for path in paths} == set(contents(built))
    assert [done for done, _, _ in told] == list(range(1, told[-1][1] + 1))


def test_a_build_that_breaks_leaves_the_old_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, boards = tmp_path / "out", two_boards()
    site.build_site(boards, out)
    before = contents(out)
    honest: Callable[[Entry], Any] = views.measured_rows

    def breaks(one: Entry) -> Any:
        if one.board == "cifar10-linf":
            raise RuntimeError("full disk")
        return honest(one)

    monkeypatch.setattr(views, "measured_rows", breaks)
    boards["digits-linf"][1].pop()
    with pytest.raises(RuntimeError, match="full disk"):
        site.build_site(boards, out)
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_swap_that_fails_puts_the_old_site_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, boards = tmp_path / "out", two_boards()
    site.build_site(boards, out)
    before = contents(out)
    rename = Path.rename

    def breaks(self: Path, target: Path) -> Path:
        if target == out and not self.name.endswith(".old"):
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", breaks)
    boards["digits-linf"][1].pop()
    with pytest.raises(UserError, match="Permission denied: name another folder"):
        site.build_site(boards, out)
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_new_site_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    out, boards = tmp_path / "out", two_boards()
    out.mkdir()  # an empty folder holds nothing to lose
    site.build_site(boards, out)
    (out / ".DS_Store").write_bytes(b"desktop")
    gone = boards["digits-linf"][1].pop()
    site.build_site(boards, out)
    assert not (out / "models" / "digits-linf" / f"{gone.model}.html").exists()
    assert (out / "models" / "digits-linf" / "bp-darts.html").exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    boards = two_boards()
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"expected a site built before in .*thesis"):
        site.build_site(boards, thesis)
    with pytest.raises(UserError, match="expected a folder for the site, got the file"):
        site.build_site(boards, thesis / "chapter.tex")
    out = tmp_path / "out"
    site.build_site(boards, out)
    (out / ".git").mkdir()
    (out / ".git" / "HEAD").write_text("ref: refs/heads/pages")
    with pytest.raises(UserError, match=r"expected only the site in .*, got also \.git/HEAD"):
        site.build_site(boards, out)
    assert (out / ".git" / "HEAD").exists()
    assert contents(thesis) == {"chapter.tex": b"years of work"}


def test_entries_stand_on_their_own_board_only(tmp_path: Path) -> None:
    contest = board()
    with pytest.raises(UserError, match="expected entries of digits-linf, linf 8/255, got tiny of other"):
        site.build_site({"digits-linf": (contest, [entry(contest=board("other"))])}, tmp_path / "out")
    with pytest.raises(UserError, match="each model once"):
        site.build_site({"digits-linf": (contest, [entry(), entry(seed=1)])}, tmp_path / "out")
    with pytest.raises(UserError, match="calls itself digits-linf"):
        site.build_site({"digits": (contest, [])}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_board_without_entries_has_a_page(tmp_path: Path) -> None:
    site.build_site({"digits-linf": (board(), [])}, tmp_path / "out")
    assert "0 networks" in (tmp_path / "out" / "index.html").read_text("utf-8")
    site.build_site({}, tmp_path / "out")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no Chromium here")
    with sync.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: Any, built: Path) -> Iterator[Callable[..., Any]]:
    """Open a page of the site; at the end, no page may have said anything on the console or left the site."""
    said: list[str] = []
    contexts = []

    def opened(address: str, **context: Any) -> Any:
        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda r: None if r.url.startswith((built.as_uri(), "data:")) else said.append(r.url))
        page.goto(f"{built.as_uri()}/{address}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []


def column(page: Any, place: int) -> list[str]:
    rows = page.locator("#entries tbody tr")
    return [row.locator("td, th").nth(place).inner_text().split("\n")[0] for row in rows.all()]


@pytest.mark.slow
def test_browser_sorts_by_mouse_and_by_keyboard_and_remembers(visit: Callable[..., Any]) -> None:
    page = visit("index.html")
    assert page.locator("#count").inner_text() == "6 of 8 entries"  # one board, whose ranks hold together
    assert column(page, 1)[-1] == "zz-nasty"
    page.get_by_role("button", name="Clean %").click()
    clean = [float(text) for text in column(page, 5)]
    assert clean == sorted(clean, reverse=True)
    assert page.locator("th[aria-sort]").get_attribute("data-sort") == "clean"
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="Model").focus()
    page.keyboard.press("Enter")
    assert column(page, 1) == sorted(column(page, 1))
    page.keyboard.press("Space")
    assert column(page, 1) == sorted(column(page, 1), reverse=True)
    assert "sort=model" in page.url
    order = column(page, 1)
    page.reload()
    assert column(page, 1) == order


@pytest.mark.slow
def test_browser_shows_the_first_hundred_rows_until_asked_for_all(browser: Any, tmp_path: Path) -> None:
    contest = board(n_examples=8)
    many = [entry(f"m{i}", contest, 0.0005 * i, i, gallery=None) for i in range(104)]
    site.build_site({contest.name: (contest, many)}, tmp_path / "out")
    page = browser.new_page()
    page.goto((tmp_path / "out" / "index.html").as_uri())
    rows = page.locator("#entries tbody tr")
    assert (rows.count(), page.locator("#count").inner_text()) == (100, "104 of 104 entries")
    page.get_by_role("button", name="Model").click()
    assert column(page, 1) == sorted(one.model for one in many)[:100]
    page.get_by_role("button", name="Show the other 4").click()
    assert rows.count() == 104
    assert page.evaluate("document.activeElement.textContent") == sorted(one.model for one in many)[100]
    page.reload()
    assert rows.count() == 104
    page.close()


@pytest.mark.slow
def test_browser_filters_and_opens_a_model(visit: Callable[..., Any]) -> None:
    page = visit("index.html")
    page.get_by_label("Rule").select_option("usf")
    assert set(column(page, 1)) == {"random-darts", "bionas-darts", "usf-darts", "zz-nasty"}
    page.get_by_label("Verdict").select_option("masked")
    page.get_by_label("Search").fill("DARTS publ")
    assert column(page, 1) == ["bionas-darts"]
    page.reload()
    assert column(page, 1) == ["bionas-darts"]
    page.get_by_label("Search").fill("nothing of that kind")
    assert page.locator("#nothing").is_visible()
    page.get_by_role("button", name="Clear the filters").click()
    page.get_by_label("Data set").select_option("cifar10")
    assert column(page, 1) == ["bp-darts", "tiny"]  # of the other board
    page.get_by_label("Board").select_option("")
    page.get_by_label("Data set").select_option("")
    assert page.locator("#count").inner_text() == "8 of 8 entries"
    page.locator("#entries a", has_text="usf-darts").click()
    assert page.url.endswith("models/digits-linf/usf-darts.html")
    assert page.locator("h1").inner_text() == "usf-darts"
    assert page.locator("svg.cell path.edge.r-usf").count() == 9
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    assert page.evaluate("getComputedStyle(document.querySelector('.gallery img')).imageRendering") == "pixelated"


@pytest.mark.slow
def test_browser_compares_two_networks(visit: Callable[..., Any]) -> None:
    page = visit("models/digits-linf/usf-darts.html")
    page.get_by_role("link", name="Compare with").click()
    page.locator("select[name=a]").select_option("bp-resnet20")
    page.locator("select[name=b]").select_option("zz-nasty")
    entries = {one.model: one.robust_correct() for one in two_boards()["digits-linf"][1]}
    for a, b in (("bp-resnet20", "zz-nasty"), ("bp-darts", "usf-darts"), ("bp-darts", "bionas-darts")):
        page.locator("select[name=a]").select_option(a)
        page.locator("select[name=b]").select_option(b)
        only_a = [i for i, (x, y) in enumerate(zip(entries[a], entries[b], strict=True)) if x and not y]
        only_b = [i for i, (x, y) in enumerate(zip(entries[a], entries[b], strict=True)) if y and not x]
        assert int(page.locator("#only-a").inner_text()) == len(only_a)
        assert int(page.locator("#only-b").inner_text()) == len(only_b)
        told = float(page.locator("#sentence").get_attribute("data-p"))
        assert told == pytest.approx(mcnemar(len(only_a), len(only_b), two_sided=True), rel=1e-9)
        assert page.locator("#list-a").text_content() == (", ".join(map(str, only_a)) or "none")
        squares = page.locator("#strip-a path.robust").get_attribute("d").count("M")
        assert squares == sum(entries[a])
        assert page.locator("#strip-b path.differs").get_attribute("d").count("M") == len(only_a) + len(only_b)
    page.get_by_role("button", name="Exchange").click()
    assert page.locator("select[name=a]").input_value() == "bionas-darts"
    page.reload()
    assert page.locator("select[name=b]").input_value() == "bp-darts"
    page.locator("select[name=a]").select_option("bp-darts")
    assert page.locator("#trouble").inner_text() == "Choose two different networks."


@pytest.mark.slow
def test_browser_shows_a_nasty_card_as_text_and_every_page_fits_a_phone(
    visit: Callable[..., Any], pages: dict[str, Page]
) -> None:
    phone = {"viewport": {"width": 360, "height": 740}}
    page = visit("models/digits-linf/zz-nasty.html", **phone)
    assert "<script>alert(1)</script>" in page.locator(".lead").inner_text()
    assert page.title().startswith("zz-nasty")
    for name in [*pages, "index.html#board=all"]:
        page = visit(name, **phone)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, name
    assert page.evaluate("document.querySelector('.scroll').scrollWidth > 360")  # the table scrolls within


#: Contrast of text against what lies behind it (WCAG 2.1): the smallest over all elements that hold text themselves.
CONTRAST = """() => {
  const shine = (c) => {
    const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255);
    const lin = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * lin(r) + 0.7152 * lin(g) + 0.0722 * lin(b);
  };
  const paper = getComputedStyle(document.documentElement).backgroundColor;
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (/^rgb\\(/.test(c)) return c;
    }
    return paper;
  };
  let worst = [99, ""];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || e.closest("script, svg, [hidden], option")) continue;
    const [a, b] = [shine(getComputedStyle(e).color), shine(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < worst[0]) worst = [ratio, e.outerHTML.slice(0, 80)];
  }
  return worst;
}"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_text_stands_out_by_day_and_night(visit: Callable[..., Any], scheme: str) -> None:
    papers = set()
    for name in ("index.html", "models/digits-linf/bionas-darts.html", "compare.html"):
        page = visit(name, color_scheme=scheme)
        papers.add(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
        ratio, where = page.evaluate(CONTRAST)
        assert ratio >= 4.5, where
    assert papers == {"rgb(251, 250, 247)" if scheme == "light" else "rgb(21, 24, 26)"}


def test_the_committed_boards_make_a_site_with_a_page_for_every_entry(tmp_path: Path) -> None:
    boards = {name: (catalog.board(name), [catalog.entry(file) for file in catalog.entry_files(name)])
              for name in catalog.board_names()}  # fmt: skip
    written = {path.name for path in site.build_site(boards, tmp_path / "site")}
    assert sum(len(entries) for _, entries in boards.values()) >= 17
    assert {f"{entry.model}.html" for _, entries in boards.values() for entry in entries} <= written


def test_what_nobody_can_measure_again_is_shown_as_the_submitters_word(built: Path) -> None:
    text = (built / "models" / "digits-linf" / "bionas-darts.html").read_text("utf-8")
    before, said, after = text.partition("The submitter’s word")
    assert said
    assert all(f"<dt>{name}</dt>" in after for name in ("commit", "seconds", "device", "created", "packages.torch"))
    assert not any(f"<dt>{name}</dt>" in before for name in ("commit", "device", "created"))
    assert "<dt>weights sha256</dt>" in before
