"""Where everything of a circuit lies: boxes down a staircase, and what connects them. Knows no SVG and no PNG."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, TypeAlias

#: Class of what inhibits, whose lines end in a bar.
INHIBITS = "s-n"

#: Sizes in pixels: a node's box and its rows, a source's lanes, an input's box, the room of a drop and before a box.
_BOX, _ROW, _LANE, _INPUT, _DROP, _GAP = 152, 22, 8, 48, 12, 22

#: Room between boxes, in which feedback runs back.
_BETWEEN = 12

#: Radius of a line's rounded corners.
_ROUND = 6

Corner: TypeAlias = tuple[float, float]


class Wire(NamedTuple):
    """What enters a node, or leaves it backwards.

    Attributes:
        text: what it is called.
        state: where it comes from, or goes to.
        style: class of its lines.
    """

    text: str
    state: int
    style: str


class Circuit(NamedTuple):
    """What is drawn.

    Attributes:
        inputs: names of the inputs, states 0, 1, …; nodes are the states after them.
        nodes: for each node what enters it.
        concat: states that make the output.
        back: node → what it feeds back to an earlier state.
    """

    inputs: Sequence[str]
    nodes: Sequence[Sequence[Wire]]
    concat: Sequence[int]
    back: dict[int, Wire]

    def arrivals(self) -> list[tuple[int, int, Wire]]:
        """Return node, row within it, and wire of all that enters."""
        return [(i, row, wire) for i, wires in enumerate(self.nodes) for row, wire in enumerate(wires)]


class Box(NamedTuple):
    """A rectangle; sizes in pixels, y downwards."""

    style: str
    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """X of its right side."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """Y of its lower side."""
        return self.top + self.height


class Line(NamedTuple):
    """A line along the axes."""

    style: str
    corners: tuple[Corner, ...]
    rounded: bool = False

    def parts(self) -> Iterator[tuple[Corner, ...]]:
        """Yield the end of each straight part, and of each rounded corner its control point and its end."""
        for before, corner, after in zip(self.corners[:-1], self.corners[1:], [*self.corners[2:], None], strict=True):
            if after is None or not self.rounded:
                yield (corner,)
            else:
                yield (_towards(corner, before),)
                yield corner, _towards(corner, after)


class Polygon(NamedTuple):
    """A filled shape, such as the tip of a line."""

    style: str
    corners: tuple[Corner, ...]


class Label(NamedTuple):
    """A text on its base line."""

    style: str
    x: float
    y: float
    text: str
    centred: bool = False


Shape: TypeAlias = Box | Line | Polygon | Label


class Drawing(NamedTuple):
    """Shapes in the order in which they cover each other; sizes in pixels."""

    width: float
    height: float
    shapes: Sequence[Shape]


def _towards(corner: Corner, other: Corner) -> Corner:
    """Return the point on the way to another one where the rounding of a corner ends."""
    (x, y), (to_x, to_y) = corner, other
    return x + _ROUND * ((to_x > x) - (to_x < x)), y + _ROUND * ((to_y > y) - (to_y < y))


def lay_out(circuit: Circuit) -> Drawing:
    """Return a circuit as shapes: inputs left, nodes down a staircase, the output right.

    A line leaves its source along a lane of its own above all later nodes and drops in the gap before its target, so
    that none passes behind a box; feedback runs back under its node and rises to its target from below, or to an input
    from the left.
    """
    boxes = _boxes(circuit)
    lanes = _lanes(boxes, circuit)
    first, out = len(circuit.inputs), boxes[-1]
    shapes: list[Shape] = []
    for state in circuit.concat:
        y = lanes[state, len(circuit.nodes), 0]
        shapes.append(Line("concat", ((boxes[state].right, y), (out.left, y))))
    for node, row, wire in circuit.arrivals():
        x, y = boxes[first + node].left, boxes[first + node].top + _ROW * (1.5 + row)
        drop, start, lane = x - 14 - _DROP * row, boxes[wire.state].right, lanes[wire.state, node, row]
        corners = ((start, lane), (drop, lane), (drop, y), (x - 6, y))
        shapes += [Line(f"edge {wire.style}", corners, rounded=True), _tip(x, y, wire.style)]
    for place, (node, wire) in enumerate(circuit.back.items()):
        shapes += _feedback(boxes, first, node, wire, place)
    height = boxes[-2].bottom + 2 + (_BETWEEN if circuit.back else 0)
    return Drawing(out.right + 1, height, [*shapes, *_labels(boxes, circuit)])


def _tip(x: float, y: float, style: str, *, below: bool = False) -> Polygon:
    """Return where a line ends, coming from the left or from below: a bar for what inhibits, else a tip."""
    if style == INHIBITS:
        corners: tuple[Corner, ...] = ((-6, -6), (-2, -6), (-2, 6), (-6, 6))
    else:
        corners = ((0, 0), (-8, -4), (-8, 4))
    return Polygon(f"tip {style}", tuple((x - b, y - a) if below else (x + a, y + b) for a, b in corners))


def _feedback(boxes: Sequence[Box], first: int, node: int, wire: Wire, place: int) -> list[Shape]:
    """Return the line that a node feeds back, and its end; `place` keeps lines to one target apart."""
    source, target = boxes[first + node], boxes[wire.state]
    start, y = source.left + 8, source.bottom + _BETWEEN // 2
    style, begin = f"edge feedback {wire.style}", ((start, source.bottom), (start, y))
    if wire.state < first:
        lane, end = target.left - 10 - _DROP // 2 * place, round(target.top + target.height / 2, 1)
        line = Line(style, (*begin, (lane, y), (lane, end), (target.left - 6, end)))
        return [line, _tip(target.left, end, wire.style)]
    lane = target.left + 24 + _DROP * place
    line = Line(style, (*begin, (lane, y), (lane, target.bottom + 6)))
    return [line, _tip(lane, target.bottom, wire.style, below=True)]


def _boxes(circuit: Circuit) -> list[Box]:
    """Return each state's box, and last the output's."""
    first, nodes = len(circuit.inputs), circuit.nodes
    sources = [wire.state for _, _, wire in circuit.arrivals()] + [*circuit.concat]
    gaps = [_GAP + _DROP * max(2, len(wires)) for wires in nodes]
    to_input = any(wire.state < first for wire in circuit.back.values())
    left = 1 + (_DROP + _DROP // 2 * len(circuit.back) if to_input else 0)
    lefts = [left] * first + [*accumulate((gap + _BOX for gap in gaps), initial=left + _INPUT)]
    boxes: list[Box] = []
    top = 1
    for state in range(first + len(nodes)):
        node = state - first
        rows = 0 if node < 0 else len(nodes[node]) + (node in circuit.back)
        least = 28 if node < 0 else (1 + rows) * _ROW + 4
        height = max(least, _LANE * (sources.count(state) + 1))
        x = left if node < 0 else lefts[state] + gaps[node]
        boxes.append(Box("box", x, top, _INPUT if node < 0 else _BOX, height))
        top += height + _BETWEEN
    return [*boxes, Box("box", boxes[-1].right + _GAP + 2 * _DROP, 1, _INPUT, top - _BETWEEN - 1)]


def _lanes(boxes: Sequence[Box], circuit: Circuit) -> dict[tuple[int, int, int], float]:
    """Return (state, node, row) → y of its lane; what drops first runs lowest, what goes out highest."""
    lanes: dict[tuple[int, int, int], float] = {}
    for state, box in enumerate(boxes[:-1]):
        first_drop_last = [(len(circuit.nodes), 0)] if state in circuit.concat else []
        places = [(node, row) for node, row, wire in circuit.arrivals() if wire.state == state]
        first_drop_last += sorted(places, key=lambda place: (-place[0], place[1]))
        room = box.height / (len(first_drop_last) + 1)
        lanes |= {(state, *place): round(box.top + room * (i + 1), 1) for i, place in enumerate(first_drop_last)}
    return lanes


def _labels(boxes: Sequence[Box], circuit: Circuit) -> Iterator[Shape]:
    """Yield the boxes with their names, then what enters each node, a row for each."""
    first = len(circuit.inputs)
    names = [*circuit.inputs, *(f"node {i}" for i in range(len(circuit.nodes))), "out"]
    for state, (box, name) in enumerate(zip(boxes, names, strict=True)):
        yield box
        if first <= state < len(boxes) - 1:
            yield Label("node", box.left + 10, box.top + 15, name)
        else:
            yield Label("node", box.left + box.width / 2, box.top + box.height / 2 + 4, name, centred=True)
    rows = [(node, row, wire.text, wire.style) for node, row, wire in circuit.arrivals()]
    rows += [(node, len(circuit.nodes[node]), f"↩ {wire.text}", wire.style) for node, wire in circuit.back.items()]
    for node, row, text, style in rows:
        x, y = boxes[first + node].left, boxes[first + node].top + _ROW * (1 + row)
        yield Box(f"port {style}", x, y + 2, 4, _ROW - 4)
        yield Label("op", x + 10, y + 15, text)
