"""The only reader of the data folders that ship with the package."""

from pathlib import Path

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import unknown
from robustbench_bio.records.base import read_toml
from robustbench_bio.records.board import Board
from robustbench_bio.records.card import ModelCard
from robustbench_bio.records.entry import Entry
from robustbench_bio.records.genotype import Genotype
from robustbench_bio.records.motif_space import MotifSpace
from robustbench_bio.records.motifs import AnyGenotype, MotifGenotype, read_genotype
from robustbench_bio.records.preset import AttackPreset
from robustbench_bio.records.space import Space

_PACKAGE = Path(__file__).resolve().parents[1]

#: Bytes of an entry's file: 10,000 examples under 20 attacks and eight images take a sixth of this.
MAX_ENTRY = 5_000_000


def data_folder(name: str) -> Path:
    """Return the folder `models`, `attacks`, `spaces` or `leaderboards`, in a checkout or in an installed wheel."""
    installed = _PACKAGE / "_data" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def model_ids() -> list[str]:
    """Return the ids of the zoo in alphabetical order."""
    return sorted(path.stem for path in data_folder("models").glob("*.toml"))


def genotype_names() -> list[str]:
    """Return the names of the published genotypes in alphabetical order."""
    return sorted(path.stem for path in (data_folder("models") / "genotypes").glob("*.toml"))


def card(model: str) -> ModelCard:
    """Return the card of a zoo model, or of a card file.

    Args:
        model: an id of the zoo, or a path that ends in .toml.

    Raises:
        UserError: no such model, or a card that is not valid.
    """
    if model.endswith(".toml"):
        return read_toml(ModelCard, Path(model))
    if model not in model_ids():
        raise UserError(unknown("model", model, model_ids()))
    found = read_toml(ModelCard, data_folder("models") / f"{model}.toml")
    if found.id != model:
        raise UserError(f"models/{model}.toml: field 'id': expected the file's name {model!r}, got {found.id!r}")
    return found


def weights_path(model: str, file: str) -> Path:
    """Return where the weights of a card lie: beside a card file, or in the zoo's folder `weights`."""
    if model.endswith(".toml"):
        return Path(model).parent / file
    return data_folder("models") / "weights" / file


def genotype(name: str) -> Genotype:
    """Return published cells by name, or some from a path that ends in .toml.

    Raises:
        UserError: no such genotype, one that is not valid, or one of motifs.
    """
    found = any_genotype(name)
    if isinstance(found, MotifGenotype):
        raise UserError(f"expected a genotype of cells, got {name}, which is of motifs: name another")
    return found


def any_genotype(name: str) -> AnyGenotype:
    """Return a published genotype, of cells or of motifs, by name, or one from a path that ends in .toml.

    Raises:
        UserError: no such genotype, or one that is not valid.
    """
    if name.endswith(".toml"):
        return read_genotype(Path(name))
    if name not in genotype_names():
        raise UserError(unknown("genotype", name, genotype_names()))
    return read_genotype(data_folder("models") / "genotypes" / f"{name}.toml")


def preset_names() -> list[str]:
    """Return the names of the attack presets in alphabetical order."""
    return sorted(path.stem for path in data_folder("attacks").glob("*.toml"))


def preset(name: str) -> AttackPreset:
    """Return an attack preset by name, or one from a path that ends in .toml.

    Raises:
        UserError: no such preset, or one that is not valid.
    """
    if name.endswith(".toml"):
        return read_toml(AttackPreset, Path(name))
    if name not in preset_names():
        raise UserError(unknown("preset", name, preset_names()))
    found = read_toml(AttackPreset, data_folder("attacks") / f"{name}.toml")
    if found.name != name:
        raise UserError(f"attacks/{name}.toml: field 'name': expected the file's name {name!r}, got {found.name!r}")
    return found


def space_names() -> list[str]:
    """Return the names of the search spaces in alphabetical order."""
    return sorted(path.stem for path in data_folder("spaces").glob("*.toml"))


def space(name: str) -> Space | MotifSpace:
    """Return a search space, of cells or of motifs, by name, or one from a path that ends in .toml.

    Raises:
        UserError: no such space, or one that is not valid.
    """
    if name.endswith(".toml"):
        return _space(Path(name))
    if name not in space_names():
        raise UserError(unknown("space", name, space_names()))
    found = _space(data_folder("spaces") / f"{name}.toml")
    if found.name != name:
        raise UserError(f"spaces/{name}.toml: field 'name': expected the file's name {name!r}, got {found.name!r}")
    return found


def _space(path: Path) -> Space | MotifSpace:
    of_motifs = path.is_file() and any(line.startswith(b"kind") for line in path.read_bytes().splitlines())
    return read_toml(MotifSpace, path) if of_motifs else read_toml(Space, path)


def board_names(folder: Path | None = None) -> list[str]:
    """Return the names of the boards in alphabetical order; `folder` stands in for the catalog's `leaderboards`."""
    return sorted(path.stem for path in (folder or data_folder("leaderboards")).glob("*.toml"))


def board(name: str, folder: Path | None = None) -> Board:
    """Return a board by name; `folder` stands in for the catalog's `leaderboards`.

    Raises:
        UserError: no such board, or one that is not valid.
    """
    if name not in board_names(folder):
        raise UserError(unknown("board", name, board_names(folder)))
    found = read_toml(Board, (folder or data_folder("leaderboards")) / f"{name}.toml")
    if found.name != name:
        raise UserError(
            f"leaderboards/{name}.toml: field 'name': expected the file's name {name!r}, got {found.name!r}"
        )
    return found


def entry_files(board: str, folder: Path | None = None) -> list[Path]:
    """Return the files of a board's entries in alphabetical order."""
    return sorted(((folder or data_folder("leaderboards")) / board).glob("*.json"))


def entry(path: Path) -> Entry:
    """Return the entry in a file.

    Raises:
        UserError: no entry, one that contradicts itself, is of a newer schema, or whose file is called otherwise.
    """
    try:
        if (size := path.stat().st_size) > MAX_ENTRY:
            raise UserError(f"{path}: expected an entry of at most {MAX_ENTRY:,} bytes, got {size:,}: not an entry")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    found = Entry.from_json(text, str(path))
    if found.model != path.stem:
        raise UserError(f"{path}: field 'model': expected the file's name {path.stem!r}, got {found.model!r}")
    return found
