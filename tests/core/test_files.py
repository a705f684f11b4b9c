"""What the package reads: regular files of a size, and nothing that never ends or never begins."""

import ast
import os
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from robustbench_bio.core.documents import parse_json
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.files import opened, read_file, read_text
from robustbench_bio.datasets import open_dataset
from robustbench_bio.datasets.safe_pickle import read_arrays
from robustbench_bio.leaderboard.folders import file_hash
from robustbench_bio.nets import build
from robustbench_bio.nets.base import Inputs
from robustbench_bio.records.base import read_document
from robustbench_bio.training.checkpoint import Checkpoint
from robustbench_bio.zoo import catalog
from robustbench_bio.zoo.loading import load_weights

PACKAGE = Path(__file__).resolve().parents[2] / "robustbench_bio"


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        before = Path.cwd()
        os.chdir(path.parent)  # a socket's name has at most 108 characters
        try:
            end.bind(path.name)
        finally:
            os.chdir(before)


ODD = {
    "endless": (endless, "got a device"),
    "pipe": (pipe, "got a pipe"),
    "folder": (Path.mkdir, "got a folder"),
    "socket": (listening, "cannot read"),
    "missing": (lambda _: None, "No such file"),
    "circle": (lambda path: path.symlink_to(path), "cannot read"),
}


def network(path: Path) -> None:
    load_weights(build("mlp", Inputs((1, 8, 8), 10, (0.0,), (1.0,)), seed=0, hidden=[4]), path)


READERS = {
    "file": lambda path: read_file(path, 100),
    "text": lambda path: read_text(path, 100),
    "TOML": read_document,
    "card": lambda path: catalog.card(str(path)),
    "genotype": lambda path: catalog.any_genotype(str(path)),
    "preset": lambda path: catalog.preset(str(path)),
    "space": lambda path: catalog.space(str(path)),
    "entry": catalog.entry,
    "weights": network,
    "hash": file_hash,
    "images": lambda path: open_dataset(str(path)),
    "pickle": lambda path: read_arrays(path, ("data",)),
}


@pytest.mark.skipif(os.name == "nt", reason="pipes and devices are files on POSIX alone")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_file_is_refused_at_once_by_every_reader(odd: str, reader: str, tmp_path: Path) -> None:
    make, said = ODD[odd]
    path = tmp_path / ("odd.npz" if reader == "images" else "odd.toml")
    make(path)
    started = time.perf_counter()
    with pytest.raises(UserError, match=said) as caught:
        READERS[reader](path)
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - started < 2


@pytest.mark.skipif(os.name == "nt", reason="pipes are files on POSIX alone")
def test_a_checkpoint_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "checkpoint")
    with pytest.raises(UserError, match="got a pipe"):
        Checkpoint(tmp_path / "checkpoint", "", "another").restore()


def test_a_file_is_read_up_to_its_limit_and_through_a_link(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"x" * 100)
    link.symlink_to(path)
    assert read_file(link, 100) == b"x" * 100
    with pytest.raises(UserError, match="at most 99 bytes, got 100: not what"):
        read_file(path, 99)
    with opened(path, 100) as file:
        assert file.read(3) == b"xxx"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_a_file_that_hides_its_size_is_cut_off() -> None:
    assert Path("/proc/self/status").stat().st_size == 0
    with pytest.raises(UserError, match="at most 10 bytes, got more"):
        read_file(Path("/proc/self/status"), 10)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_files_that_are_refused_are_closed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in (tmp_path, tmp_path / "file") * 5:
        with pytest.raises(UserError):
            read_file(path, 10)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' twice"),
        ('[{"b": {"a": 1, "a": 1}}]', "the key 'a' twice"),
        ('{"a": NaN}', "NaN"),
        ("[-Infinity]", "Infinity"),
        (f"[{2**63}]", "more than 63 bits"),
        (f"[{'9' * 5000}]", "more than 63 bits"),
        ("[" * 100_000, "recursion"),
        ("{", "expected JSON"),
    ],
)
def test_json_that_could_be_read_in_two_ways_or_not_at_all_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        parse_json(text, "here")
    assert str(caught.value).startswith("here: ")
    assert parse_json(f'{{"a": [{-(2**62)}, 1.5, true, null, "x"]}}', "here") == {"a": [-(2**62), 1.5, True, None, "x"]}


#: Modules that read what the package itself or an installed library brought.
OWN = {"core/files.py", "report/site/__init__.py", "datasets/digits.py"}


def test_nothing_else_in_the_package_opens_files_to_read() -> None:
    readers = {"read_text", "read_bytes", "open", "load_file", "fromfile", "loadtxt", "genfromtxt"}
    found = []
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            # `source.open()` of a data set takes no mode; `half.open("xb")` writes.
            method = isinstance(node.func, ast.Attribute) or name == "open"
            if module not in OWN and method and name in readers and (name != "open" or node.args):
                found.append(f"{module}:{node.lineno}: {name}")
    assert found == []


def test_a_numpy_archive_of_something_else_or_of_too_much_is_refused(tmp_path: Path) -> None:
    import io
    import zipfile

    def archive(name: str, content: bytes, **more: object) -> str:
        path = tmp_path / f"{name}.npz"
        labels = io.BytesIO()
        np.save(labels, np.arange(3))
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("test_images.npy", content)
            file.writestr("test_labels.npy", labels.getvalue())
        return str(path)

    from robustbench_bio.datasets import load_examples

    def header(text: str) -> bytes:
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()

    shapes = "{'descr': '|u1', 'fortran_order': False, 'shape': (%s), }\n"
    nested = header("(" * 300 + ")" * 300)
    for name, content in {
        "bytes": b"GIF89a", "nested": nested, "long": header(" " * 5000), "huge": header(shapes % "10**3,"),
        "claimed": header(shapes % "1000000000000, 28, 28"), "negative": header(shapes % "-1, 28, 28"),
        "wraps": header(shapes % "4294967296, 4294967296, 2"), "code": header("__import__('os').system('x')"),
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=r"plain arrays, got: .+: write it anew"):
            load_examples(archive(name, content))
    path = Path(archive("locked", b"x"))
    data = bytearray(path.read_bytes())
    for place in (data.find(b"PK\x03\x04") + 6, data.find(b"PK\x01\x02") + 8):
        data[place] |= 1  # the bit that says encrypted
    path.write_bytes(data)
    with pytest.raises(UserError, match="encrypted"):
        load_examples(str(path))


def test_an_array_that_unpacks_to_too_much_is_refused_before_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustbench_bio.datasets import load_examples, npz

    np.savez_compressed(tmp_path / "z.npz", test_images=np.zeros((64, 99, 99), np.uint8), test_labels=np.arange(64))
    monkeypatch.setattr(npz, "MAX_BYTES", 100_000)
    with pytest.raises(UserError, match="at most 100,000 bytes in test_images, got 627,"):
        load_examples(str(tmp_path / "z.npz"))


def test_a_label_that_would_make_a_huge_classifier_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "z.npz", test_images=np.zeros((2, 4, 4), np.uint8), test_labels=[0, 10**7])
    with pytest.raises(UserError, match="below 32,768, got 10000000"):
        _ = open_dataset(str(tmp_path / "z.npz")).classes
