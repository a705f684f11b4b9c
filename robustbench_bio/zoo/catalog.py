"""The only reader of the data folders that ship with the package."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.files import read_text
from robustbench_bio.core.registry import unknown
from robustbench_bio.records.base import Record, read_toml
from robustbench_bio.records.board import Board
from robustbench_bio.records.card import ModelCard
from robustbench_bio.records.entry import Entry
from robustbench_bio.records.genotype import Genotype
from robustbench_bio.records.motif_space import MotifSpace, read_space
from robustbench_bio.records.motifs import AnyGenotype, MotifGenotype, read_genotype
from robustbench_bio.records.preset import AttackPreset
from robustbench_bio.records.space import Space

R = TypeVar("R", bound=Record)

_PACKAGE = Path(__file__).resolve().parents[1]

#: Bytes of an entry's file: 10,000 examples under 20 attacks and eight images take a sixth of this.
MAX_ENTRY = 5_000_000


def data_folder(name: str) -> Path:
    """Return the folder `models`, `attacks`, `spaces` or `leaderboards`, in a checkout or in an installed wheel."""
    installed = _PACKAGE / "_data" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.toml"))


def _named(kind: str, name: str, folder: Path, read: Callable[[Path], R], field: str = "name") -> R:
    """Return the record of a name in a folder, which must call itself so."""
    if name not in _names(folder):
        raise UserError(unknown(kind, name, _names(folder)))
    record = read(folder / f"{name}.toml")
    if (own := getattr(record, field)) != name:
        place = f"{folder.name}/{name}.toml: field {field!r}"
        raise UserError(f"{place}: expected the file's name {name!r}, got {own!r}")
    return record


def model_ids(folder: Path | None = None) -> list[str]:
    """Return the ids of the zoo in alphabetical order; `folder` stands in for the catalog's `models`."""
    return _names(folder or data_folder("models"))


def card(model: str, folder: Path | None = None) -> ModelCard:
    """Return the card of an id of the zoo, or of a path that ends in .toml.

    Raises:
        UserError: no such model, or a card that is not valid.
    """
    read = partial(read_toml, ModelCard)
    if model.endswith(".toml"):
        return read(Path(model))
    if (kind := Path(model).suffix) in {".pt", ".pth", ".ckpt", ".onnx", ".safetensors"}:
        raise UserError(
            f"expected an id of the zoo or a card that ends in .toml, got a {kind} file: name its weights in a card "
            "(biorobust submit --weights), or load it in Python and call rb.evaluate"
        )
    return _named("model", model, folder or data_folder("models"), read, "id")


def weights_path(model: str, file: str) -> Path:
    """Return where the weights of a card lie: beside a card file, or in the zoo's folder `weights`."""
    if model.endswith(".toml"):
        return Path(model).parent / file
    return data_folder("models") / "weights" / file


def genotype_names() -> list[str]:
    """Return the names of the published genotypes in alphabetical order."""
    return _names(data_folder("models") / "genotypes")


def genotype(name: str) -> Genotype:
    """Return published cells by name, or some from a path that ends in .toml.

    Raises:
        UserError: no such genotype, one that is not valid, or one of motifs.
    """
    either = any_genotype(name)
    if isinstance(either, MotifGenotype):
        raise UserError(f"expected a genotype of cells, got {name}, which is of motifs: name another")
    return either


def any_genotype(name: str, folder: Path | None = None) -> AnyGenotype:
    """Return a published genotype, of cells or of motifs, by name, or one from a path that ends in .toml.

    With a folder of models, its own genotypes come before the published ones, and no path is followed.

    Raises:
        UserError: no such genotype, or one that is not valid.
    """
    if folder is None and name.endswith(".toml"):
        return read_genotype(Path(name))
    for models in filter(None, (folder, data_folder("models"))):
        # What a genotype calls itself is what was published; its file may be called otherwise.
        if name in _names(models / "genotypes"):
            return read_genotype(models / "genotypes" / f"{name}.toml")
    raise UserError(unknown("genotype", name, genotype_names()))


def preset_names() -> list[str]:
    """Return the names of the attack presets in alphabetical order."""
    return _names(data_folder("attacks"))


def preset(name: str) -> AttackPreset:
    """Return an attack preset by name, or one from a path that ends in .toml.

    Raises:
        UserError: no such preset, or one that is not valid.
    """
    read = partial(read_toml, AttackPreset)
    return read(Path(name)) if name.endswith(".toml") else _named("preset", name, data_folder("attacks"), read)


def space_names() -> list[str]:
    """Return the names of the search spaces in alphabetical order."""
    return _names(data_folder("spaces"))


def space(name: str) -> Space | MotifSpace:
    """Return a search space, of cells or of motifs, by name, or one from a path that ends in .toml.

    Raises:
        UserError: no such space, or one that is not valid.
    """
    if name.endswith(".toml"):
        return read_space(Path(name))
    return _named("space", name, data_folder("spaces"), read_space)


def board_names(folder: Path | None = None) -> list[str]:
    """Return the names of the boards in alphabetical order; `folder` stands in for the catalog's `leaderboards`."""
    return _names(folder or data_folder("leaderboards"))


def board(name: str, folder: Path | None = None) -> Board:
    """Return a board by name; `folder` stands in for the catalog's `leaderboards`.

    Raises:
        UserError: no such board, or one that is not valid.
    """
    return _named("board", name, folder or data_folder("leaderboards"), partial(read_toml, Board))


def boards_with_entries(name: str | None = None, folder: Path | None = None) -> dict[str, tuple[Board, list[Entry]]]:
    """Return name → board and its entries, of one board or of all; `folder` stands in for the catalog's.

    Raises:
        UserError: no such board, or a board or an entry that is not valid.
    """
    names = board_names(folder) if name is None else [name]
    return {one: (board(one, folder), [entry(path) for path in entry_files(one, folder)]) for one in names}


def entry_files(board: str, folder: Path | None = None) -> list[Path]:
    """Return the files of a board's entries in alphabetical order."""
    return sorted(((folder or data_folder("leaderboards")) / board).glob("*.json"))


def entry(path: Path) -> Entry:
    """Return the entry in a file.

    Raises:
        UserError: no entry, one that contradicts itself, is of a newer schema, or whose file is called otherwise.
    """
    record = Entry.from_json(read_text(path, MAX_ENTRY), str(path))
    if record.model != path.stem:
        raise UserError(f"{path}: field 'model': expected the file's name {path.stem!r}, got {record.model!r}")
    return record
