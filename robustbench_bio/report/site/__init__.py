"""The static site of the leaderboards: every page stands alone, opens from a disk, and asks no network for anything."""

import base64
import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
from markupsafe import Markup

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.files import read_text
from robustbench_bio.core.progress import Progress
from robustbench_bio.core.version import __version__
from robustbench_bio.leaderboard.ranking import LEVEL, rank_entries
from robustbench_bio.records.board import Board
from robustbench_bio.records.entry import Entry
from robustbench_bio.report.palette import style_sheet
from robustbench_bio.report.site import cells, gallery, plots, views
from robustbench_bio.report.tables import bounds, percent

#: The file by which a folder is known as a site; it lists what the build wrote.
MARKER = ".biorobust-site.json"

#: Bytes of it: some hundred thousand pages.
MAX_MARKER = 10_000_000

#: What a desktop leaves in folders that it shows; no reason to keep a site.
LITTER = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})


def build_site(boards: dict[str, tuple[Board, list[Entry]]], out: Path, progress: Progress | None = None) -> list[Path]:
    """Write the site of some boards; the one that was there before stays until the new one is whole.

    `out` is made anew, with all that was in it. `progress` is called with pages done, their number, and the page's
    path.

    Returns:
        Paths of all files of the site.

    Raises:
        UserError: `out` holds something that no build wrote, or cannot be written; an entry of another board; two
            entries of one model, or entries that cannot be compared.
    """
    out = out.resolve()
    _refuse_others(out)
    places = _places(boards)
    fresh = out.with_name(f".{out.name}.{secrets.token_hex(8)}")
    try:
        fresh.mkdir(parents=True)
        written = [_write(fresh, page, text) for page, text in _counted(_pages(boards, places), places, progress)]
        _write(fresh, MARKER, json.dumps({"version": __version__, "files": written}, indent=1))
        _swap(fresh, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}: name another folder with --out") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return [out / page for page in [*written, MARKER]]


def _refuse_others(out: Path) -> None:
    """Raise `UserError` unless `out` is missing, empty, or holds a site and nothing else."""
    if not out.exists():
        return
    remedy = "name another folder with --out"
    if not out.is_dir():
        raise UserError(f"expected a folder for the site, got the file {out}: {remedy}")
    present = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir() or path.is_symlink()}
    present = {name for name in present if PurePosixPath(name).name not in LITTER}
    if not present:
        return
    try:
        known = {*json.loads(read_text(out / MARKER, MAX_MARKER))["files"], MARKER}
    except (UserError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"expected a site built before in {out}, got a folder of something else: {remedy}") from None
    if strange := sorted(present - known):
        raise UserError(f"expected only the site in {out}, got also {strange[0]}: move it away or {remedy}")


def _swap(fresh: Path, out: Path) -> None:
    """Put the new folder where the old one is, or leave the old one there."""
    old = fresh.with_name(f"{fresh.name}.old")
    existed = out.exists()
    if existed:
        out.rename(old)
    try:
        fresh.rename(out)
    except OSError:
        if existed:
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write(folder: Path, page: str, text: str) -> str:
    path = folder / page
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
    return page


def _places(boards: dict[str, tuple[Board, list[Entry]]]) -> dict[str, list[views.Place]]:
    """Return board → its entries in order; raises `UserError` for one that belongs elsewhere."""
    places: dict[str, list[views.Place]] = {}
    for name, (board, entries) in boards.items():
        if name != board.name:
            raise UserError(f"expected the board {name}, got one that calls itself {board.name}: rename its file")
        for entry in entries:
            if entry.board != name or entry.rank_by != board.rank_by:
                asked, got = (f"{b}, {r}" for b, r in ((name, board.rank_by), (entry.board, entry.rank_by)))
                raise UserError(
                    f"expected entries of {asked}, got {entry.model} of {got}: move its file or measure anew"
                )
        places[name] = [views.Place(board, row, order) for order, row in enumerate(rank_entries(entries))]
    return places


def _counted(
    pages: Iterator[tuple[str, str]], places: dict[str, list[views.Place]], progress: Progress | None
) -> Iterator[tuple[str, str]]:
    total = 2 + 2 * sum(map(len, places.values()))
    for done, (page, text) in enumerate(pages, 1):
        if progress is not None:
            progress(done, total, page)
        yield page, text


def _pages(
    boards: dict[str, tuple[Board, list[Entry]]], places: dict[str, list[views.Place]]
) -> Iterator[tuple[str, str]]:
    """Yield path and text of every file."""
    environment = _environment()
    shown = [(board, places[name]) for name, (board, _) in boards.items()]
    rows = [place for _, entries in shown for place in entries]
    latest = max((views.day(place.entry.provenance.created) for place in rows), default="")
    environment.globals.update(latest=latest, version=__version__, level=f"{LEVEL:g}")
    yield (
        "index.html",
        _render(
            environment,
            "index",
            shown=shown,
            rows=rows,
            choices=_choices(rows),
            data=views.inlined([views.index_row(place) for place in rows]),
        ),
    )
    contests = [views.contest(board, entries) for board, entries in shown]
    yield "compare.html", _render(environment, "compare", data=views.inlined(contests))
    for board, entries in shown:
        for place in entries:
            others = [other for other in rows if other.entry.model == place.entry.model and other.board != board]
            rivals = [other for other in entries if other is not place]
            rival = min(rivals, key=lambda other: abs(other.order - place.order), default=None)
            yield place.page, _model_page(environment, place, others, rival)
            yield place.page.removesuffix("html") + "json", place.entry.canonical() + "\n"


def _choices(rows: Sequence[views.Place]) -> dict[str, list[str]]:
    """Return what the index can be filtered by, besides boards."""
    return {
        "dataset": sorted({place.board.dataset for place in rows}),
        "rule": sorted({rule for place in rows for rule in cells.card_rules(place.entry)}),
        "verdict": sorted({place.verdict for place in rows}),
    }


def _model_page(
    environment: jinja2.Environment, place: views.Place, others: Sequence[views.Place], rival: views.Place | None
) -> str:
    entry, board = place.entry, place.board
    curves = [
        (curve, plots.curve_plot(curve), views.curve_keys(curve), views.largest_gap(curve))
        for curve in views.entry_curves(entry)
    ]
    return _render(
        environment,
        "model",
        root="../../",
        place=place,
        entry=entry,
        board=board,
        others=others,
        rival=rival,
        curves=curves,
        cells=cells.cell_drawings(entry),
        cell_keys=cells.cell_keys(entry),
        rules=cells.card_rules(entry),
        wiring=cells.wiring(entry),
        measured=views.measured_rows(entry),
        images=gallery.images(entry.gallery),
        card=views.card_fields(entry),
        provenance=list(views.fields(entry.provenance.model_dump(mode="json"))),
    )


def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters = (
        percent,
        bounds,
        views.board_threat,
        views.value_text,
        views.reference_address,
        gallery.magnified,
        gallery.followed_gradient,
        cells.card_rules,
    )
    environment.filters.update({function.__name__: function for function in filters})
    environment.globals.update(interval_bar=plots.interval_bar, interval_axis=plots.interval_axis)
    return environment


def _render(environment: jinja2.Environment, page: str, **values: Any) -> str:
    """Return a page with its style and script inlined, and a policy that allows these two and nothing else."""
    style = style_sheet() + _source("site.css")
    scripts = [_source("hash.js") + _source(f"{page}.js")] if page != "model" else []
    allowed = " ".join(map(_digest, scripts)) or "'none'"
    policy = (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {allowed}; "
        "base-uri 'none'; form-action 'none'"
    )
    template = environment.get_template(f"{page}.html.j2")
    # Sources of the package itself, none of which ends its element.
    inlined = {"style": Markup(style), "script": Markup("".join(scripts))}  # noqa: S704
    return template.render({"root": "", "page": page, "policy": policy, **inlined, **values})


def _source(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
