"""From shapes to pictures: SVG text that a page can hold, and a sheet of drawings as SVG and PNG files."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from robustbench_bio.core.files import write_atomically
from robustbench_bio.report.layout import Box, Drawing, Label, Line, Polygon, Shape
from robustbench_bio.report.palette import LOOKS, colour, dashes, style_sheet

#: Room around a sheet and between its parts, height of a line of its legend, and width of a letter there, in pixels.
_MARGIN, _LINE, _LETTER = 20, 20, 6.5

#: Pixels of a PNG for each pixel of the drawing, and pixels of a drawing to an inch.
_SHARPNESS, _INCH = 2, 96


class Key(NamedTuple):
    """A line of a legend: class of the style, text."""

    style: str
    text: str


def svg(drawing: Drawing, title: str) -> Markup:
    """Return a drawing as SVG, its colours left to the page's style sheet; `title` is read out in its place."""
    width, height = f"{drawing.width:g}", f"{drawing.height:g}"
    head = f'<svg class="cell" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">'
    shapes = "".join(map(_element, drawing.shapes))
    return Markup(f"{head}<title>{escape(title)}</title>{shapes}</svg>")  # noqa: S704 - every text in it is escaped


def _element(shape: Shape) -> str:
    match shape:
        case Box(style, left, top, width, height):
            return f'<rect class="{style}" x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}"/>'
        case Line(style):
            return f'<path class="{style}" d="{_path(shape)}"/>'
        case Polygon(style, corners):
            return f'<path class="{style}" d="M{"L".join(f"{x:g} {y:g}" for x, y in corners)}z"/>'
        case Label(style, x, y, text, centred):
            anchor = ' text-anchor="middle"' if centred else ""
            return f'<text class="{style}"{anchor} x="{x:g}" y="{y:g}">{escape(text)}</text>'


def _path(line: Line) -> str:
    x, y = line.corners[0]
    text = f"M{x:g} {y:g}"
    for *control, (to_x, to_y) in line.parts():
        if control:
            (middle_x, middle_y) = control[0]
            text += f"q{middle_x - x:g} {middle_y - y:g} {to_x - x:g} {to_y - y:g}"
        else:
            text += f"H{to_x:g}" if to_y == y else f"V{to_y:g}"
        x, y = to_x, to_y
    return text


def write_sheet(stem: Path, title: str, parts: Sequence[tuple[str, Drawing]], keys: Sequence[Key]) -> None:
    """Write drawings below each other, each under its heading, and their legend as stem.svg and stem.png."""
    sheet = _sheet(title, parts, keys)
    write_atomically(stem.with_suffix(".svg"), _file(sheet, title).encode())
    write_atomically(stem.with_suffix(".png"), _png(sheet))


def _sheet(title: str, parts: Sequence[tuple[str, Drawing]], keys: Sequence[Key]) -> Drawing:
    width = 2 * _MARGIN + max(520.0, *(drawing.width for _, drawing in parts))
    shapes: list[Shape] = [Label("title", _MARGIN, _MARGIN + 12, title)]
    y = _MARGIN + 32.0
    for heading, drawing in parts:
        shapes.append(Label("heading", _MARGIN, y + 12, heading))
        shapes += [_moved(shape, _MARGIN, y + 22) for shape in drawing.shapes]
        y += 22 + drawing.height + _MARGIN
    x = float(_MARGIN)
    for style, text in keys:
        room = 40 + _LETTER * len(text)
        if x > _MARGIN and x + room > width - _MARGIN:
            x, y = float(_MARGIN), y + _LINE
        shapes += [Line(f"edge {style}", ((x, y), (x + 28, y))), Label("key", x + 34, y + 4, text)]
        x += room + 14
    return Drawing(width, y + _MARGIN, shapes)


def _moved(shape: Shape, dx: float, dy: float) -> Shape:
    match shape:
        case Box():
            return shape._replace(left=shape.left + dx, top=shape.top + dy)
        case Label():
            return shape._replace(x=shape.x + dx, y=shape.y + dy)
        case Line() | Polygon():
            return shape._replace(corners=tuple((x + dx, y + dy) for x, y in shape.corners))


def _file(sheet: Drawing, title: str) -> str:
    """Return a sheet as SVG that brings its own paper and style sheet."""
    head, _, body = svg(sheet, title).partition(">")
    paper = '<rect width="100%" height="100%" style="fill: var(--paper)"/>'
    space = ' xmlns="http://www.w3.org/2000/svg">'
    return f'<?xml version="1.0" encoding="utf-8"?>\n{head}{space}<style>\n{style_sheet()}</style>{paper}{body}\n'


def _png(sheet: Drawing) -> bytes:
    """Return a sheet as PNG on light paper."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(sheet.width / _INCH, sheet.height / _INCH), facecolor=colour("paper"))
    FigureCanvasAgg(figure)
    panel = figure.add_axes((0, 0, 1, 1))
    panel.set(xlim=(0, sheet.width), ylim=(sheet.height, 0))
    panel.axis("off")
    for order, shape in enumerate(sheet.shapes):
        artist = panel.add_artist(_artist(shape))
        artist.set_zorder(order)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_SHARPNESS * _INCH)
    return data.getvalue()


def _artist(shape: Shape) -> Any:
    from matplotlib.patches import Polygon as FilledPolygon
    from matplotlib.patches import Rectangle
    from matplotlib.text import Text

    look, point = LOOKS[shape.style.split()[0]], 72 / _INCH
    fill, stroke = (colour(name, shape.style) if name else "none" for name in (look.fill, look.stroke))
    width = point * look.width if look.stroke else 0
    match shape:
        case Box(_, left, top, across, down):
            return Rectangle((left, top), across, down, facecolor=fill, edgecolor=stroke, linewidth=width)
        case Polygon(_, corners):
            return FilledPolygon(corners, facecolor=fill, edgecolor=stroke, linewidth=width)
        case Line(style):
            return _line_artist(shape, color=stroke, linewidth=width, dash=dashes(style), point=point)
        case Label(_, x, y, text, centred):
            family, align = "monospace" if look.mono else "sans-serif", "center" if centred else "left"
            size = point * look.size
            return Text(x, y, text, color=fill, fontsize=size, fontfamily=family, ha=align, parse_math=False)


def _line_artist(line: Line, *, color: str, linewidth: float, dash: tuple[int, int] | None, point: float) -> Any:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    corners, codes = [line.corners[0]], [Outline.MOVETO]
    for part in line.parts():
        corners += part
        codes += [Outline.CURVE3] * 2 if len(part) == 2 else [Outline.LINETO]
    dashed = "solid" if dash is None else (0, tuple(point * length for length in dash))
    return PathPatch(
        Outline(corners, codes), fill=False, edgecolor=color, linewidth=linewidth, linestyle=dashed, capstyle="butt"
    )
