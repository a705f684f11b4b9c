"""Drawings of cells and motifs: one layout behind the SVG and the PNG, one palette behind both."""

from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import matplotlib.image
import numpy as np
import pytest

from robustbench_bio.records.genotype import SUFFIXES, Edge, Genotype, Primitive
from robustbench_bio.records.motif_space import MotifSpace
from robustbench_bio.records.motifs import LINKS, MotifGenotype, reduction_cells
from robustbench_bio.report import palette, rendering
from robustbench_bio.report.drawing import both_cells, draw_cells, rule_keys
from robustbench_bio.report.layout import Box, Drawing, Label
from robustbench_bio.report.motif_drawing import draw_motifs, link_style, motif_circuit
from robustbench_bio.zoo import catalog

SPACE = "{http://www.w3.org/2000/svg}"


def one_of_each_rule() -> Genotype:
    """Return cells with an edge under every rule that a primitive may carry, and one without weights."""
    edges = [Edge(Primitive("conv_7x1_1x7", rule).name, 0) for rule in SUFFIXES.names()] + [Edge("max_pool_3x3", 1)]
    return Genotype(name="rules", source="", normal=edges, reduce=edges)


def motifs() -> MotifGenotype:
    space = catalog.space("mse-nas")
    assert isinstance(space, MotifSpace)
    motifs = {one.name: one.motif for one in space.motifs if not one.malformed}
    return MotifGenotype(
        name="some", source="", inputs=3, cells=tuple(motifs[name] for name in ("m3", "m2", "m2", "m3", "m5"))
    )


def test_every_rule_and_every_sign_has_a_style() -> None:
    assert {f"r-{rule}" for rule in SUFFIXES.names()} <= palette.STYLES.keys()
    assert {link_style(link) for link in LINKS} <= palette.STYLES.keys()
    shades = [palette.COLOURS[palette.STYLES[f"r-{rule}"]] for rule in SUFFIXES.names()]
    for side in (0, 1):
        assert len({shade[side] for shade in shades}) == len(SUFFIXES.names())
    assert [key.text for key in rule_keys(one_of_each_rule().normal)] == [*sorted(SUFFIXES.names()), "without weights"]


def test_a_sheet_is_an_svg_that_brings_every_colour_it_names(tmp_path: Path) -> None:
    draw_cells(one_of_each_rule(), tmp_path)
    root = Xml.parse(tmp_path / "cells.svg").getroot()  # noqa: S314 - written a line before
    assert root.tag == f"{SPACE}svg"
    style = root.findtext(f"{SPACE}style") or ""
    for used in style.split("var(--")[1:]:
        assert f"--{used.partition(')')[0]}:" in style
    texts = [element.text for element in root.iter(f"{SPACE}text")]
    assert {"rules", "Normal cell", "Reduction cell", *SUFFIXES.names()} <= set(texts)


@pytest.mark.parametrize("kind", ["cells", "motifs"])
def test_the_png_shows_what_the_svg_does(kind: str, tmp_path: Path) -> None:
    if kind == "cells":
        draw_cells(one_of_each_rule(), tmp_path)
    else:
        draw_motifs(motifs(), reduction_cells(5, "direct"), tmp_path)
    root = Xml.parse(tmp_path / "cells.svg").getroot()  # noqa: S314
    pixels = np.rint(255 * matplotlib.image.imread(tmp_path / "cells.png")[..., :3]).astype(int)
    assert pixels.shape[:2] == pytest.approx((2 * float(root.attrib["height"]), 2 * float(root.attrib["width"])), abs=2)
    for element in root.iter(f"{SPACE}rect"):
        style = element.get("class", "")
        if style.startswith("port"):
            x, y, width, height = (float(element.attrib[side]) for side in ("x", "y", "width", "height"))
            shown = pixels[round(2 * (y + height / 2)), round(2 * (x + width / 2))]
            assert "#{:02x}{:02x}{:02x}".format(*shown) == palette.colour("own", style)


def extents(drawing: Drawing) -> list[tuple[Label, Any]]:
    """Return every text of a drawing with the place that it takes, in pixels of the drawing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(drawing.width / 96, drawing.height / 96), dpi=96)
    FigureCanvasAgg(figure)
    panel = figure.add_axes((0, 0, 1, 1))
    panel.set(xlim=(0, drawing.width), ylim=(drawing.height, 0))
    labels = [shape for shape in drawing.shapes if isinstance(shape, Label)]
    return [(label, panel.add_artist(rendering._artist(label)).get_window_extent()) for label in labels]


def test_no_text_overlaps_another_or_leaves_its_box() -> None:
    drawings = [drawing for genotype in (one_of_each_rule(), catalog.genotype("biodarts"))
                for _, drawing in both_cells(genotype)]  # fmt: skip
    for drawing in [*drawings, *map(motif_circuit, motifs().cells)]:
        boxes = [shape for shape in drawing.shapes if isinstance(shape, Box) and shape.style == "box"]
        placed = extents(drawing)
        for label, extent in placed:
            (box,) = [box for box in boxes if box.left < label.x < box.right and box.top < label.y < box.bottom]
            assert (extent.x0, extent.x1) > (box.left, box.left)
            assert extent.x1 < box.right, label
        for (one, first), (other, second) in combinations(placed, 2):
            assert not first.overlaps(second), (one, other)


def test_a_legend_wraps_within_the_sheet() -> None:
    keys = rule_keys([*one_of_each_rule().normal, Edge("max_pool_3x3", 0)])
    sheet = rendering._sheet("title", [("heading", Drawing(100, 50, []))], keys)
    placed = extents(sheet)
    assert {label.text for label, _ in placed} == {"title", "heading", *(key.text for key in keys)}
    assert all(extent.x1 < sheet.width for _, extent in placed)
    assert len({label.y for label, _ in placed if label.style == "key"}) > 1
    for (one, first), (other, second) in combinations(placed, 2):
        assert not first.overlaps(second), (one, other)
