"""Mutants of good files: what is wrong with one is said in one line, soon and in little memory."""

import copy
import io
import json
import random
import resource
import sys
import time
import tomllib
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tomli_w
from safetensors.torch import save

from robustbench_bio.core.errors import UserError
from robustbench_bio.datasets import load_examples, open_dataset
from robustbench_bio.evaluation.store import Store, unseal
from robustbench_bio.leaderboard import submission
from robustbench_bio.leaderboard.folders import Folders
from robustbench_bio.leaderboard.submission import SubmissionOptions
from robustbench_bio.nets import build
from robustbench_bio.nets.base import Inputs, Net
from robustbench_bio.records.result import Result
from robustbench_bio.training.checkpoint import Checkpoint
from robustbench_bio.zoo import catalog
from robustbench_bio.zoo.loading import load_weights

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="measures memory with resource")]

#: Mutants of each kind of file and way to mutate; seconds and bytes that one may take to read.
MUTANTS, SECONDS, MEMORY = 250, 5.0, 500_000_000

#: Values that no field expects.
ODD: list[Any] = [
    True, False, 0, -1, 1.0, 2**62, 2**63, -(2**63) - 1, 10**400, 1e308, -1e308, float("inf"), float("nan"), "",
    "x" * 5000, "\x00", "\x1b[2J", "../../etc/passwd", "/dev/zero", "random:" + "9" * 4400, "8/0", "1e999", "bp,*=usf",
    "é\u202e", [], {}, [[]], [1] * 100, {"a": {"a": {"a": 1}}}, [[[[[[[[]]]]]]]], None, ["sep_conv_3x3", 99],
    "surrogate:x+eot:3", "9" * 400,
]  # fmt: skip


#: Headers of arrays that are none.
HEADS = [
    *("{'descr': '|u1', 'fortran_order': False, 'shape': (N, 8, 8), }".replace("N", n)
      for n in ("-1", "0", "1000000000000", "4611686018427387904")),
    *("{'descr': 'D', 'fortran_order': 3, 'shape': (2,), }".replace("D", d) for d in ("|O", "|u1", "<U99999999", "x")),
    "(" * 200, "[" * 900, "{" * 90, "{'descr': " + "(" * 60 + "1", "\0", "'\\N{BULLET}'", "-" * 500 + "1",
]  # fmt: skip


def tables(node: Any) -> Iterator[Any]:
    """Yield every table and list of a document that is not empty."""
    if isinstance(node, dict | list) and node:
        yield node
        for inside in node.values() if isinstance(node, dict) else node:
            yield from tables(inside)


def change(document: Any, rng: random.Random) -> Any:
    """Put something odd into a document, take something out of it, or copy a part of it elsewhere."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        every = list(tables(document))
        if not every:
            return document
        node, other = rng.choice(every), rng.choice(every)
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        match rng.randrange(4):
            case 0 | 1:
                node[key] = copy.deepcopy(rng.choice(ODD))
            case 2:
                del node[key]
            case _:
                donor = rng.choice(list(other.values()) if isinstance(other, dict) else other)
                node[key] = json.loads(json.dumps(donor, default=str))
    return document


def of_json(data: bytes, rng: random.Random) -> bytes:
    text = json.dumps(change(json.loads(data), rng))
    if rng.random() < 0.1:  # a key twice
        place = text.find("{") + 1
        text = text[:place] + '"model": "a", "model": "b", ' + text[place:]
    return text.encode()


def of_toml(data: bytes, rng: random.Random) -> bytes:
    document = change(tomllib.loads(data.decode()), rng)
    try:
        return tomli_w.dumps(document).encode(errors="surrogatepass")
    except (TypeError, ValueError, AttributeError):  # nothing that TOML could say
        return str(document).encode(errors="replace")


def of_npz(data: bytes, rng: random.Random) -> bytes:
    """Change headers of arrays, the arrays themselves, or how the archive holds them."""
    arrays = dict(np.load(io.BytesIO(data)))
    name = rng.choice(list(arrays))
    kinds = [np.float64, np.int64, np.uint8, bool, "U3", "V4", "S0", "M8[s]", "c16", object, [("a", "i4")]]
    shapes = [(), (0,), (1,), (2, 0), (5, 1, 1, 1), (3, 3), (1, 8, 8, 200)]
    if rng.random() < 0.5:
        arrays[name] = np.zeros(rng.choice(shapes), rng.choice(kinds))
    buffer = io.BytesIO()
    with zipfile.ZipFile(
        buffer, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
    ) as file:
        for key, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array, allow_pickle=True)
            content = bytearray(member.getvalue())
            if rng.random() < 0.5:
                head = rng.choice(HEADS)
                version = rng.choice([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"])
                size = len(head).to_bytes(2 if version == b"\x01\x00" else 4, "little")
                content = bytearray(b"\x93NUMPY" + version + size + head.encode() + content[80:])
            file.writestr(rng.choice([f"{key}.npy", f"{key}.npy", key, f"x/{key}.npy"]), bytes(content))
    return buffer.getvalue()


def of_safetensors(data: bytes, rng: random.Random) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(change(json.loads(data[8 : 8 + size]), rng)).encode()
    claimed = rng.choice([len(header)] * 4 + [0, 2**63, 2**64 - 1, len(header) + 1])
    return claimed.to_bytes(8, "little") + header + data[8 + size :]


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat or insert some bytes."""
    spoilt = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        first = rng.randrange(len(spoilt) + 1)
        last = min(len(spoilt), first + rng.choice([1, 1, 4, 50, 1000]))
        match rng.randrange(5):
            case 0:
                spoilt[first:last] = rng.randbytes(last - first)
            case 1:
                del spoilt[first:last]
            case 2:
                spoilt[first:first] = spoilt[first:last] * rng.choice([1, 2, 30])
            case 3:
                spoilt[first:first] = rng.choice(
                    [b"\x00", b"\xff", b'"', b"[" * 3000, b"{" * 3000, b"9" * 5000, b"=", b"\n"]
                )
            case _:
                del spoilt[first:]
    return bytes(spoilt)


def mlp() -> Net:
    return build("mlp", Inputs((1, 8, 8), 10, (0.3,), (0.4,)), seed=0, hidden=[6])


def images(path: Path) -> None:
    data = open_dataset(str(path))
    _ = data.classes, data.mean, data.shape
    load_examples(str(path), "test")


CARD = """id = "file"
title = "A card"
rule = "random:3,layer*=fa"
rule_options = { }
[net]
name = "cnn"
widths = [4, 8]
[datasets.digits]
seed = 3
[datasets.digits.recipe]
epochs = 2
lr = 0.1
[datasets.digits.recipe.adversary]
eps = 0.1
"""


def submitted(path: Path) -> None:
    """Check a card as far as a submission does before it measures, with weights that fit none."""
    folders = Folders(path.parent / "zoo", path.parent / "zoo")
    board = catalog.board("digits-linf")
    submission.from_file(path, board, folders, SubmissionOptions(weights=path), lambda *_: None)


def of(folder: str, *names: str) -> Callable[[Path], object]:
    """Return what copies a file of the catalog."""
    return lambda path: path.write_bytes(catalog.data_folder(folder).joinpath(*names).read_bytes())


def genotype(path: Path) -> object:
    return catalog.any_genotype(str(path))


class Kind(NamedTuple):
    """A kind of file: its name, what writes a good one, its reader, and how it is changed in its own terms."""

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    change: Callable[[bytes, random.Random], bytes]


KINDS: dict[str, Kind] = {
    "card": Kind("file.toml", of("models", "bionas-darts.toml"), lambda path: catalog.card(str(path)), of_toml),
    "submitted card": Kind("file.toml", lambda path: path.write_text(CARD), submitted, of_toml),
    "genotype": Kind("file.toml", of("models", "genotypes", "biodarts.toml"), genotype, of_toml),
    "motifs": Kind("file.toml", of("models", "genotypes", "mse-nas-digits-s0.toml"), genotype, of_toml),
    "preset": Kind("file.toml", of("attacks", "standard.toml"), lambda path: catalog.preset(str(path)), of_toml),
    "space": Kind("file.toml", of("spaces", "bionas.toml"), lambda path: catalog.space(str(path)), of_toml),
    "motif space": Kind("file.toml", of("spaces", "mse-nas.toml"), lambda path: catalog.space(str(path)), of_toml),
    "board": Kind("digits-linf.toml", of("leaderboards", "digits-linf.toml"),
                  lambda path: catalog.board("digits-linf", path.parent), of_toml),
    "entry": Kind("bp-darts.json", of("leaderboards", "digits-linf", "bp-darts.json"), catalog.entry, of_json),
    "images": Kind("file.npz", lambda path: np.savez_compressed(
        path, test_images=np.ones((9, 8, 8), np.uint8), test_labels=np.arange(9)), images, of_npz),
    "weights": Kind("file.safetensors", lambda path: path.write_bytes(save(mlp().state_dict())),
                    lambda path: load_weights(mlp(), path), of_safetensors),
    "checkpoint": Kind("file.safetensors", lambda path: Checkpoint(path, "me", "x").save({}, mlp().state_dict()),
                       lambda path: Checkpoint(path, "me", "x").restore(), of_safetensors),
}  # fmt: skip


@pytest.mark.parametrize("way", ["bytes", "structure"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_of_mutants_raises_nothing_but_the_users_mistake(
    kind: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "MAX_PARAMETERS", 200_000)
    name, write, read, restructure = KINDS[kind]
    path = tmp_path / name
    write(path)
    good = path.read_bytes()
    if kind != "submitted card":
        read(path)
    (tmp_path / "zoo" / "genotypes").mkdir(parents=True)
    refused = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for mutant in range(MUTANTS):
        rng = random.Random(f"{kind} {way} {mutant}")  # noqa: S311
        spoilt = of_bytes(good, rng) if way == "bytes" else restructure(good, rng)
        path.write_bytes(spoilt)
        started, said = time.perf_counter(), ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(path)
        except UserError as error:
            refused += 1
            said = str(error)
        except BaseException as error:
            raise AssertionError(f"mutant {mutant}: {type(error).__name__}: {error}") from error
        assert "\n" not in said, (mutant, said)
        assert len(said) < 3000, (mutant, said[:500])
        assert time.perf_counter() - started < SECONDS, (mutant, path)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert grown < MEMORY
    assert refused > MUTANTS / 4, "mutants that are mostly good prove little"


def test_a_damaged_result_of_the_store_is_no_result(tmp_path: Path) -> None:
    from samples import result

    store, one = Store(tmp_path), result()
    path = store.put(one)
    good = path.read_bytes()
    for mutant in range(MUTANTS):
        rng = random.Random(f"store {mutant}")  # noqa: S311
        spoilt = (of_bytes if mutant % 2 else of_json)(good, rng)
        path.write_bytes(spoilt)
        read = unseal(Result, path)
        assert read is None or read == one
