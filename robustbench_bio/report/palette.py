"""Colours and strokes of everything that is drawn: once, for pages, SVG files and PNG files."""

from typing import NamedTuple


class Shade(NamedTuple):
    """A colour on light and on dark paper."""

    light: str
    dark: str


#: Hues that also people with colour blindness tell apart (Okabe & Ito 2008); the pale ones darker on light paper.
BLUE, VERMILION, GREEN = Shade("#0072b2", "#5aaee0"), Shade("#d55e00", "#f08a3c"), Shade("#009e73", "#35c79a")
PINK, ORANGE, SKY = Shade("#b85a90", "#e09cc0"), Shade("#b87f00", "#e6b13c"), Shade("#2b93cf", "#7fcdf5")

#: For lines of a plot that stand for nothing with a colour of its own.
SERIES = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY)

#: Colour of a learning rule; plain backpropagation has that of the text.
RULES = {
    "usf": BLUE,
    "frsf": GREEN,
    "brsf": VERMILION,
    "fa": PINK,
    "dfa": ORANGE,
    "oja": SKY,
    "hard-wta": Shade("#8c6d31", "#c9a563"),
    "softhebb": Shade("#7f3c8d", "#c58ad2"),
}

COLOURS = RULES | {
    "paper": Shade("#fbfaf7", "#15181a"),
    "ink": Shade("#1d1f21", "#e6e4de"),
    "soft": Shade("#5b6065", "#a2a6a8"),
    "line": Shade("#dedbd3", "#33383b"),
    "wash": Shade("#f1efe9", "#1d2124"),
    "accent": Shade("#0b6477", "#6cc3d5"),
    "excites": BLUE,
    "inhibits": VERMILION,
}

#: Class of an edge or a link → its colour: by the rule that owns it, or by its sign.
STYLES = {f"r-{rule}": rule for rule in RULES} | {
    "r-bp": "ink",
    "r-untold": "ink",
    "r-none": "soft",
    "s-p": "excites",
    "s-n": "inhibits",
    "s-any": "ink",
}

#: Class of an edge or a link → lengths of its dashes and gaps in pixels; the others are solid.
DASHES = {"r-none": (2, 3), "r-untold": (7, 3), "feedback": (5, 4)}


class Look(NamedTuple):
    """How shapes of a class look in a drawing.

    Attributes:
        fill, stroke: names of colours, "" for none; "own" is that of the shape's style in `STYLES`.
        width: of the stroke, in pixels.
        size: of a text, in pixels.
        mono: whether all letters are equally wide.
    """

    fill: str = ""
    stroke: str = ""
    width: float = 1
    size: int = 11
    mono: bool = False


LOOKS = {
    "concat": Look(stroke="line", width=2),
    "edge": Look(stroke="own", width=2),
    "tip": Look(fill="own"),
    "box": Look(fill="paper", stroke="soft"),
    "port": Look(fill="own"),
    "node": Look(fill="soft"),
    "op": Look(fill="ink", mono=True),
    "key": Look(fill="ink"),
    "heading": Look(fill="soft", size=13),
    "title": Look(fill="ink", size=16),
}


def colour(name: str, style: str = "") -> str:
    """Return a colour on light paper; of "own" that of the last class of `style`."""
    return COLOURS[STYLES.get(style.rpartition(" ")[2], "ink") if name == "own" else name].light


def dashes(style: str) -> tuple[int, int] | None:
    """Return lengths of dash and gap of a line whose classes are `style`; None for a solid one."""
    return next((DASHES[name] for name in style.split() if name in DASHES), None)


def style_sheet() -> str:
    """Return the palette as CSS: a variable for each colour, `--own` in each style, and the looks."""
    light, dark = (" ".join(f"--{name}: {shade[side]};" for name, shade in COLOURS.items()) for side in (0, 1))
    lines = [f":root {{ {light} }}", f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"]
    # What the palette does not know, such as a rule of somebody else's, has the text's colour.
    lines.append(".edge, .tip, .port { --own: var(--ink); }")
    lines += [f".{style} {{ --own: var(--{name}); }}" for style, name in STYLES.items()]
    # Legends of a page draw edges too; all else belongs to drawings.
    lines += [f"{'' if name == 'edge' else '.cell '}.{name} {{ {_declared(look)} }}" for name, look in LOOKS.items()]
    lines += [f".edge.{style} {{ stroke-dasharray: {dash} {gap}; }}" for style, (dash, gap) in DASHES.items()]
    return "\n".join(lines) + "\n"


def _declared(look: Look) -> str:
    fill, stroke = (f"var(--{name})" if name else "none" for name in (look.fill, look.stroke))
    family = "ui-monospace, Menlo, Consolas, monospace" if look.mono else "system-ui, Helvetica, Arial, sans-serif"
    return f"fill: {fill}; stroke: {stroke}; stroke-width: {look.width:g}; font: {look.size}px {family};"
