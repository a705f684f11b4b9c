"""Pictures of cells and motifs as SVG that a page can hold: boxes down a staircase, and what connects them."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from markupsafe import Markup, escape

from robustbench_bio.records.genotype import OPERATIONS, SUFFIXES, Edge, Primitive, parse_primitive
from robustbench_bio.records.motifs import Motif, parse_link

#: Rule of an edge whose rule neither genotype nor card tells, such as one that was drawn at random.
UNTOLD = "untold"

#: Class of a link's style, by sign; links without weights have that of edges without weights.
SIGNS = {"p": "s-p", "n": "s-n", "": "s-any"}

#: Sizes in pixels: a node's box and its rows, a source's lanes, an input's box, the room of a drop and before a box.
_BOX, _ROW, _LANE, _INPUT, _DROP, _GAP = 152, 22, 8, 48, 12, 22

#: Room between boxes, in which feedback runs back.
_BETWEEN = 12


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


class _Box(NamedTuple):
    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def bottom(self) -> int:
        return self.top + self.height


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


def edge_rule(op: str, rule: str = "") -> str:
    """Return the rule that owns an edge: `rule` if one is given, else the primitive's; "" where there are no weights.

    Args:
        op: name of a primitive.
        rule: that a card gives to every edge instead.
    """
    operation, own = parse_primitive(op)
    return (rule or own) if OPERATIONS.get(operation) else ""


def cell(edges: Sequence[Edge], concat: Sequence[int], title: str, rule: str = "") -> Markup:
    """Return a cell as SVG: inputs left, nodes down a staircase, the output right; edges in their rule's class `r-…`.

    Args:
        edges: two for each node.
        concat: states that make the output.
        title: read out in place of the picture.
        rule: that owns every edge with weights, if it is not the primitive's own.
    """

    def wire(edge: Edge) -> Wire:
        owner = edge_rule(edge.op, rule)
        shown = Primitive(parse_primitive(edge.op).operation, owner).name if owner in SUFFIXES else edge.op
        return Wire(shown, edge.state, f"r-{owner or 'none'}")

    nodes = [[wire(edge) for edge in edges[i : i + 2]] for i in range(0, len(edges), 2)]
    return _drawn(Circuit(("c k−2", "c k−1"), nodes, concat, {}), title)


def link_style(op: str) -> str:
    """Return the class of a link's lines: by its sign, or that of what has no weights."""
    link = parse_link(op)
    return SIGNS[link.sign] if link.kernel else "r-none"


def motif(found: Motif, title: str) -> Markup:
    """Return a motif as SVG: excitation ends in a tip, inhibition in a bar, feedback runs back below the boxes, dashed.

    Links that are not there are left out.

    Args:
        found: whose nodes side by side make the output.
        title: read out in place of the picture.
    """

    def wire(link: Edge) -> Wire:
        return Wire(link.op, link.state, link_style(link.op))

    nodes = [[wire(link) for link in node if link.op != "none"] for node in found.nodes]
    back = {i: wire(link) for i, link in enumerate(found.feedback, 1) if link.op != "none"}
    states = range(found.inputs, found.inputs + len(nodes))
    return _drawn(Circuit([f"in {i}" for i in range(found.inputs)], nodes, states, back), title)


def _drawn(drawn: Circuit, title: str) -> Markup:
    """Return a circuit as SVG.

    A line leaves its source along a lane of its own above all later nodes and drops in the gap before its target, so
    that none passes behind a box; feedback runs back under its node and rises to its target from below, or to an input
    from the left.
    """
    boxes = _boxes(drawn)
    lanes = _lanes(boxes, drawn)
    first, out = len(drawn.inputs), boxes[-1]
    width, height = out.right + 1, boxes[-2].bottom + 2 + (_BETWEEN if drawn.back else 0)
    lines = [f'<svg class="cell" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">']
    lines.append(f"<title>{escape(title)}</title>")
    for state in drawn.concat:
        y = lanes[state, len(drawn.nodes), 0]
        lines.append(f'<path class="concat" d="M{boxes[state].right} {y}H{out.left}"/>')
    for node, row, wire in drawn.arrivals():
        x, y = boxes[first + node].left, boxes[first + node].top + _ROW * (1.5 + row)
        drop, start, lane = x - 14 - _DROP * row, boxes[wire.state].right, lanes[wire.state, node, row]
        lines.append(
            f'<path class="edge {wire.style}" d="M{start} {lane}H{drop - 6}q6 0 6 6V{y - 6}q0 6 6 6H{x - 6}"/>'
        )
        lines.append(_tip(x, y, wire.style))
    for place, (node, wire) in enumerate(drawn.back.items()):
        lines += _feedback(boxes, first, node, wire, place)
    return Markup("".join([*lines, *_labels(boxes, drawn), "</svg>"]))  # noqa: S704 - every text in it is escaped


def _tip(x: float, y: float, style: str) -> str:
    """Return where a line ends: a bar for what inhibits, else a tip."""
    shape = "l-8 -4v8z" if style != SIGNS["n"] else "m-6 -6h4v12h-4z"
    return f'<path class="tip {style}" d="M{x} {y}{shape}"/>'


def _feedback(boxes: Sequence[_Box], first: int, node: int, wire: Wire, place: int) -> list[str]:
    """Return the line that a node feeds back, and its end; `place` keeps lines to one target apart."""
    source, target = boxes[first + node], boxes[wire.state]
    start, y = source.left + 8, source.bottom + _BETWEEN // 2
    style, begin = f"edge feedback {wire.style}", f"M{start} {source.bottom}V{y}"
    if wire.state < first:
        lane, end = target.left - 10 - _DROP // 2 * place, round(target.top + target.height / 2, 1)
        path = f"{begin}H{lane}V{end}H{target.left - 6}"
        return [f'<path class="{style}" d="{path}"/>', _tip(target.left, end, wire.style)]
    lane, end = target.left + 24 + _DROP * place, target.bottom
    shape = "l-4 8h8z" if wire.style != SIGNS["n"] else "m-6 2h12v4h-12z"
    return [
        f'<path class="{style}" d="{begin}H{lane}V{end + 6}"/>',
        f'<path class="tip {wire.style}" d="M{lane} {end}{shape}"/>',
    ]


def _boxes(drawn: Circuit) -> list[_Box]:
    """Return each state's box, and last the output's."""
    first, nodes = len(drawn.inputs), drawn.nodes
    sources = [wire.state for _, _, wire in drawn.arrivals()] + [*drawn.concat]
    gaps = [_GAP + _DROP * max(2, len(wires)) for wires in nodes]
    to_input = any(wire.state < first for wire in drawn.back.values())
    left = 1 + (_DROP + _DROP // 2 * len(drawn.back) if to_input else 0)
    lefts = [left] * first + [*accumulate((gap + _BOX for gap in gaps), initial=left + _INPUT)]
    boxes: list[_Box] = []
    top = 1
    for state in range(first + len(nodes)):
        node = state - first
        rows = 0 if node < 0 else len(nodes[node]) + (node in drawn.back)
        least = 28 if node < 0 else (1 + rows) * _ROW + 4
        height = max(least, _LANE * (sources.count(state) + 1))
        x = left if node < 0 else lefts[state] + gaps[node]
        boxes.append(_Box(x, top, _INPUT if node < 0 else _BOX, height))
        top += height + _BETWEEN
    return [*boxes, _Box(boxes[-1].right + _GAP + 2 * _DROP, 1, _INPUT, top - _BETWEEN - 1)]


def _lanes(boxes: Sequence[_Box], drawn: Circuit) -> dict[tuple[int, int, int], float]:
    """Return (state, node, row) → y of its lane; what drops first runs lowest, what goes out highest."""
    lanes: dict[tuple[int, int, int], float] = {}
    for state, box in enumerate(boxes[:-1]):
        first_drop_last = [(len(drawn.nodes), 0)] if state in drawn.concat else []
        places = [(node, row) for node, row, wire in drawn.arrivals() if wire.state == state]
        first_drop_last += sorted(places, key=lambda place: (-place[0], place[1]))
        room = box.height / (len(first_drop_last) + 1)
        lanes |= {(state, *place): round(box.top + room * (i + 1), 1) for i, place in enumerate(first_drop_last)}
    return lanes


def _labels(boxes: Sequence[_Box], drawn: Circuit) -> list[str]:
    lines = []
    first = len(drawn.inputs)
    names = [*drawn.inputs, *(f"node {i}" for i in range(len(drawn.nodes))), "out"]
    for state, (box, name) in enumerate(zip(boxes, names, strict=True)):
        lines.append(f'<rect class="box" x="{box.left}" y="{box.top}" width="{box.width}" height="{box.height}"/>')
        if first <= state < len(boxes) - 1:
            lines.append(f'<text class="node" x="{box.left + 10}" y="{box.top + 15}">{name}</text>')
        else:
            x, y = box.left + box.width / 2, box.top + box.height / 2 + 4
            lines.append(f'<text class="node" text-anchor="middle" x="{x}" y="{y}">{name}</text>')
    rows = [(node, row, wire.text, wire.style) for node, row, wire in drawn.arrivals()]
    rows += [(node, len(drawn.nodes[node]), f"↩ {wire.text}", wire.style) for node, wire in drawn.back.items()]
    for node, row, text, style in rows:
        x, y = boxes[first + node].left, boxes[first + node].top + _ROW * (1 + row)
        lines.append(f'<rect class="port {style}" x="{x}" y="{y + 2}" width="4" height="{_ROW - 4}"/>')
        lines.append(f'<text class="op" x="{x + 10}" y="{y + 15}">{escape(text)}</text>')
    return lines
