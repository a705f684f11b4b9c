import hashlib
import http.server
import io
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robustbench_bio.core.errors import UserError
from robustbench_bio.datasets import DATASETS, Dataset, Examples, default_root, load_examples, open_dataset
from robustbench_bio.datasets.safe_pickle import read_arrays

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 3072), dtype=np.uint8)


# --- every registered data set ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASETS.names())
def test_every_dataset_describes_itself(name: str) -> None:
    data = open_dataset(name)
    channels, height, width = data.shape
    assert len(data.mean) == len(data.std) == channels
    assert all(0 <= m < 1 for m in data.mean)
    assert all(0 < s <= 0.5 for s in data.std)  # no numbers in [0, 1] spread wider
    assert height > 0
    assert width > 0
    assert len(set(data.classes)) == len(data.classes) > 1
    assert set(data.augmentation) <= {"crop", "flip"}
    assert data.licence


@pytest.mark.parametrize("name", DATASETS.names())
def test_what_is_not_local_would_be_downloaded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **params: object) -> None:
        raise OSError("asked for the network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    data = open_dataset(name)
    asked = False
    try:
        data.load("test", tmp_path, 1)
    except UserError as error:
        asked = "asked for the network" in str(error)
    assert data.is_local(tmp_path) != asked


@pytest.mark.parametrize("name", ["cifar10.npz", "cifar-10-python.tar.gz", "cifar-10-batches-py"])
def test_cifar_is_local_in_every_form_that_is_read(name: str, tmp_path: Path) -> None:
    data = open_dataset("cifar10")
    assert not data.is_local(tmp_path)
    (tmp_path / name).touch()
    assert data.is_local(tmp_path)


def test_the_registry_holds_the_promised_names() -> None:
    assert {"digits", "cifar10", "cifar100", "imagenet", "imagenet16-120"} <= set(DATASETS.names())
    sizes = {"digits": 10, "cifar10": 10, "cifar100": 100, "imagenet": 1000, "imagenet16-120": 120}
    assert {name: len(open_dataset(name).classes) for name in sizes} == sizes


def test_listing_the_datasets_loads_no_heavy_library() -> None:
    code = (
        "import sys; from robustbench_bio.datasets import DATASETS; DATASETS.names();"
        "print([m for m in ('torch', 'torchvision', 'sklearn', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"


def test_an_unknown_dataset_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown dataset 'cifar-10': did you mean cifar10"):
        open_dataset("cifar-10")


def test_a_wrong_request_is_refused_before_any_download(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown split 'tset': did you mean test"):
        load_examples("cifar10", "tset", data_root=tmp_path)
    for n in (0, -3):
        with pytest.raises(UserError, match=f"expected n_examples >= 1, got {n}"):
            load_examples("cifar10", "test", n, data_root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_data_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.delenv("BIOROBUST_DATA", raising=False)
    monkeypatch.delenv("BIOROBUST_HOME", raising=False)
    assert default_root() == tmp_path / "me/.cache/biorobust/data"
    monkeypatch.setenv("BIOROBUST_HOME", "~/bio")
    assert default_root() == tmp_path / "me/bio/data"
    monkeypatch.setenv("BIOROBUST_DATA", str(tmp_path / "there"))
    assert default_root() == tmp_path / "there"


# --- digits ----------------------------------------------------------------------------------------------


def test_the_digits_splits_part_the_bundled_images() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    levels = [(v * 255 + 8) // 16 for v in range(17)]  # round half up in whole numbers
    source = sorted((int(y), *(levels[int(v)] for v in row)) for row, y in zip(bunch.data, bunch.target, strict=True))
    train, test = load_examples("digits", "train"), load_examples("digits", "test")
    ours = sorted((int(y), *map(int, x.ravel())) for e in (train, test) for x, y in zip(e.x, e.y, strict=True))
    assert (len(train), len(test)) == (1297, 500)
    assert ours == source
    assert train.x.dtype == np.uint8
    assert train.x.shape == (1297, 1, 8, 8)
    assert train.y.dtype == train.ids.dtype == np.int64
    assert train.ids.tolist() == list(range(1297))


@pytest.mark.parametrize(("split", "balanced_up_to"), [("test", 500), ("train", 1240)])
def test_any_first_n_digits_are_nearly_balanced(split: str, balanced_up_to: int) -> None:
    y = load_examples("digits", split).y[:balanced_up_to]
    per_class = np.cumsum(y[:, None] == np.arange(10), axis=0)
    assert (per_class.max(1) - per_class.min(1)).max() == 1


def test_a_part_of_the_digits_is_the_beginning_of_the_whole() -> None:
    whole, part = load_examples("digits"), load_examples("digits", n_examples=70)
    np.testing.assert_array_equal(part.x, whole.x[:70])
    np.testing.assert_array_equal(part.y, whole.y[:70])
    with pytest.raises(UserError, match=r"1\.\.500 .*got 501"):
        load_examples("digits", n_examples=501)


def test_the_statistics_of_digits_are_those_of_the_train_split() -> None:
    x = load_examples("digits", "train").x / 255
    assert open_dataset("digits").mean == pytest.approx((x.mean(),), abs=1e-6)
    assert open_dataset("digits").std == pytest.approx((x.std(),), abs=1e-6)


def test_the_table_of_digits_is_the_one_that_scikit_learn_loads() -> None:
    from sklearn.datasets import load_digits

    from robustbench_bio.datasets import digits

    bunch = load_digits()
    np.testing.assert_array_equal(digits._table(), np.column_stack([bunch.data, bunch.target]))


@pytest.mark.parametrize("column", [0, 64])
def test_digits_with_one_changed_value_are_refused(monkeypatch: pytest.MonkeyPatch, column: int) -> None:
    from robustbench_bio.datasets import digits

    table = digits._table()
    table[0, column] = 1 - table[0, column]  # both start with 0
    monkeypatch.setattr(digits, "_table", lambda: table)
    with pytest.raises(UserError, match=r"expected digits/\w+ with sha256"):
        [load_examples("digits", split) for split in ("train", "test")]


def test_the_hash_of_examples_covers_pixels_labels_and_shape() -> None:
    one = load_examples("digits", n_examples=4)
    others = [
        Examples(one.x ^ np.uint8(1), one.y, one.ids),
        Examples(one.x, one.y[::-1].copy(), one.ids),
        Examples(one.x.reshape(4, 1, 4, 16), one.y, one.ids),
    ]
    assert len({e.sha256() for e in [one, *others]}) == 4
    assert Examples(np.asfortranarray(one.x), one.y.astype(">i8"), one.ids).sha256() == one.sha256()


# --- CIFAR: torchvision's files, small ---------------------------------------------------------------------

CIFAR_FILES = {
    "CIFAR10": [(f"data_batch_{i}", "labels") for i in range(1, 6)] + [("test_batch", "labels")],
    "CIFAR100": [("train", "fine_labels"), ("test", "fine_labels")],
}


@pytest.fixture
def cifar(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], bytes]:
    """Return what packs small files into an archive and makes torchvision expect them, with no network."""
    import torchvision.datasets

    def pack(reader_name: str) -> bytes:
        reader = getattr(torchvision.datasets, reader_name)
        silent = reader.__init__

        def talkative(self: object, *args: object, **kwargs: object) -> None:
            print("Files already downloaded and verified")  # noqa: T201  (as some releases do)
            silent(self, *args, **kwargs)

        monkeypatch.setattr(reader, "__init__", talkative)
        members, sums = {}, {}
        for i, (file, labels) in enumerate(CIFAR_FILES[reader_name]):
            members[file] = pickle.dumps({"data": PIXELS[5 * i : 5 * i + 5], labels: [4, 3, 2, 1, i]})
        members[reader.meta["filename"]] = pickle.dumps({reader.meta["key"]: ["a", "b"]})
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for file, content in members.items():
                sums[file] = hashlib.md5(content, usedforsecurity=False).hexdigest()
                entry = tarfile.TarInfo(f"{reader.base_folder}/{file}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        for attribute in ("train_list", "test_list"):
            monkeypatch.setattr(reader, attribute, [[f, sums[f]] for f, _ in getattr(reader, attribute)])
        monkeypatch.setattr(reader, "meta", reader.meta | {"md5": sums[reader.meta["filename"]]})
        packed = buffer.getvalue()
        monkeypatch.setattr(reader, "tgz_md5", hashlib.md5(packed, usedforsecurity=False).hexdigest())
        monkeypatch.setattr(reader, "url", f"http://127.0.0.1:9/{reader.filename}")  # a closed port
        return packed

    return pack


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """Serve bytes as torchvision's archive of CIFAR-10 on this machine."""
    import torchvision.datasets

    body = b""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def offer(content: bytes) -> None:
        nonlocal body
        body = content
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/c.tar.gz")

    yield offer
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("name", "reader"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_an_archive_put_into_the_root_is_unpacked_and_read(
    tmp_path: Path, cifar: Callable[[str], bytes], capfd: pytest.CaptureFixture[str], name: str, reader: str
) -> None:
    archive = tmp_path / ("cifar-10-python.tar.gz" if name == "cifar10" else "cifar-100-python.tar.gz")
    archive.write_bytes(cifar(reader))
    folder = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    n_files = len(CIFAR_FILES[reader])
    for _ in range(2):  # unpacking, then reading what was unpacked
        test = load_examples(name, "test", data_root=tmp_path)
        np.testing.assert_array_equal(test.x.reshape(5, -1), PIXELS[5 * n_files - 5 : 5 * n_files])
        assert test.y.tolist() == [4, 3, 2, 1, n_files - 1]
        assert test.x.shape == (5, 3, 32, 32)
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted([archive.name, folder])
        archive.write_bytes(b"no longer needed")
    train = load_examples(name, "train", n_examples=4, data_root=tmp_path)
    np.testing.assert_array_equal(train.x.reshape(4, -1), PIXELS[:4])
    assert train.ids.tolist() == [0, 1, 2, 3]
    assert capfd.readouterr().out == ""


def test_missing_cifar_is_downloaded_quietly(
    tmp_path: Path,
    cifar: Callable[[str], bytes],
    serve: Callable[[bytes], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    serve(cifar("CIFAR10"))
    root = tmp_path / "new" / "root"
    assert load_examples("cifar10", "train", data_root=root).x.tobytes() == PIXELS[:25].tobytes()
    assert [p.name for p in root.iterdir()] == ["cifar-10-batches-py"]
    assert capfd.readouterr().out == ""


def test_a_damaged_folder_is_replaced_by_a_download(
    tmp_path: Path, cifar: Callable[[str], bytes], serve: Callable[[bytes], None]
) -> None:
    serve(cifar("CIFAR10"))
    load_examples("cifar10", data_root=tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"half of")
    assert load_examples("cifar10", "test", data_root=tmp_path).x.tobytes() == PIXELS[25:30].tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["cifar-10-batches-py"]


def test_a_broken_download_leaves_nothing_behind(
    tmp_path: Path, cifar: Callable[[str], bytes], serve: Callable[[bytes], None]
) -> None:
    serve(cifar("CIFAR10")[:-50])
    with pytest.raises(UserError, match="could not be downloaded"):
        load_examples("cifar10", data_root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_offline_says_what_to_put_where(tmp_path: Path, cifar: Callable[[str], bytes]) -> None:
    cifar("CIFAR10")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"a wrong file of the user")
    with pytest.raises(UserError) as caught:
        load_examples("cifar10", data_root=tmp_path)
    message = str(caught.value)
    assert message.startswith(f"cifar10 is not in {tmp_path} and could not be downloaded (")
    assert "refused" in message
    assert message.endswith("): put cifar-10-python.tar.gz or cifar10.npz there, or pass --data-file FILE.npz")
    assert "\n" not in message
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"a wrong file of the user"]


def test_more_cifar_than_there_is_says_how_many_there_are(tmp_path: Path, cifar: Callable[[str], bytes]) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(cifar("CIFAR10"))
    with pytest.raises(UserError, match=r"1\.\.25 .*got 26"):
        load_examples("cifar10", "train", 26, data_root=tmp_path)


def test_a_stalled_connection_times_out_and_the_global_timeout_is_restored(
    tmp_path: Path, cifar: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    import torchvision.datasets

    cifar("CIFAR10")
    monkeypatch.setattr("robustbench_bio.datasets.cifar._STALLED_AFTER", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/c.tar.gz"
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", address)
        start = time.monotonic()
        with pytest.raises(UserError, match="timed out"):
            load_examples("cifar10", data_root=tmp_path)
        assert time.monotonic() - start < 5
    assert socket.getdefaulttimeout() is None


# --- ImageNet: a folder of small JPEG files ----------------------------------------------------------------


def jpeg(level: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, (level,) * len(mode) if mode != "L" else level).save(buffer, "JPEG", quality=100)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def imagenet_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two grey images for each of 1,000 classes: the level is 3 times the class modulo 80, plus 0 or 1."""
    root = tmp_path_factory.mktemp("imagenet_root")
    files = {level: jpeg(level) for level in range(242)}
    for k in range(1000):
        folder = root / "imagenet" / "val" / f"n{k:08d}"
        folder.mkdir(parents=True)
        for i in (0, 1):
            (folder / f"{i}.JPEG").write_bytes(files[k % 80 * 3 + i])
    return root


def test_imagenet_examples_are_spread_over_the_sorted_list(imagenet_root: Path) -> None:
    part = load_examples("imagenet", "test", 8, data_root=imagenet_root)
    assert part.ids.tolist() == [0, 250, 500, 750, 1000, 1250, 1500, 1750]
    assert part.y.tolist() == [0, 125, 250, 375, 500, 625, 750, 875]
    assert part.x.shape == (8, 3, 224, 224)
    assert part.x[:, 1, 100, 100].tolist() == [k % 80 * 3 for k in part.y.tolist()]
    odd = load_examples("imagenet", "test", 3, data_root=imagenet_root)
    assert odd.ids.tolist() == [0, 666, 1333]
    assert odd.x[:, 0, 0, 0].tolist() == [0, 333 % 80 * 3, 666 % 80 * 3 + 1]


def test_only_the_imagenet_files_asked_for_are_opened(imagenet_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    real_open = Image.open
    monkeypatch.setattr(Image, "open", lambda file: (opened.append(file), real_open(file))[1])
    load_examples("imagenet", "test", 5, data_root=imagenet_root)
    assert len(opened) == 5
    with pytest.raises(UserError, match=r"1\.\.2000 .*got 2001"):
        load_examples("imagenet", "test", 2001, data_root=imagenet_root)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_an_imagenet_image_is_resized_then_cropped_at_its_centre(imagenet_root: Path, mode: str) -> None:
    first = imagenet_root / "imagenet/val/n00000000/0.JPEG"
    before = first.read_bytes()
    try:
        ramp = np.add.outer(np.arange(300) * 0.3, np.arange(400) * 0.4)
        picture = Image.fromarray(np.stack([ramp, ramp / 2, 255 - ramp], -1).astype(np.uint8)).convert(mode)
        picture.save(first, "JPEG")
        loaded = load_examples("imagenet", "test", 1, data_root=imagenet_root).x[0]
        with Image.open(first) as file:
            resized = file.convert("RGB").resize((341, 256), Image.Resampling.BILINEAR)
    finally:
        first.write_bytes(before)
    expected = np.asarray(resized)[16:240, 58:282]  # torchvision rounds (341 - 224) / 2 to even
    np.testing.assert_array_equal(loaded.transpose(1, 2, 0), expected)


def test_a_damaged_imagenet_file_is_named(imagenet_root: Path) -> None:
    first = imagenet_root / "imagenet/val/n00000000/0.JPEG"
    before = first.read_bytes()
    for damaged in (b"no image", jpeg(5, (64, 64))[:-300]):
        try:
            first.write_bytes(damaged)
            with pytest.raises(UserError, match=r"n00000000/0\.JPEG, got a damaged file"):
                load_examples("imagenet", "test", 1, data_root=imagenet_root)
        finally:
            first.write_bytes(before)


def test_missing_imagenet_says_what_to_put_where(tmp_path: Path, imagenet_root: Path) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path}/imagenet/val/<wnid>/\*\.JPEG, found 0: accept the licence"):
        load_examples("imagenet", data_root=tmp_path)
    (tmp_path / "imagenet" / "val").mkdir(parents=True)
    (tmp_path / "imagenet" / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(jpeg(0))
    with pytest.raises(UserError, match="found 0"):
        load_examples("imagenet", data_root=tmp_path)
    (tmp_path / "imagenet" / "val" / "n00000001").mkdir()
    with pytest.raises(UserError, match=r"expects 1000 class folders .*found 1:"):
        load_examples("imagenet", data_root=tmp_path)
    with pytest.raises(UserError, match="imagenet/train"):
        load_examples("imagenet", "train", data_root=imagenet_root)


def test_an_empty_imagenet_class_is_an_error(tmp_path: Path) -> None:
    for k in range(1000):
        (tmp_path / "imagenet" / "val" / f"n{k:08d}").mkdir(parents=True)
    with pytest.raises(UserError, match="expected images in every class folder"):
        load_examples("imagenet", data_root=tmp_path)


# --- ImageNet16-120: pickles read as data ------------------------------------------------------------------


def write_imagenet16(root: Path, labels: dict[str, list[int]], protocol: int = 4) -> dict[str, np.ndarray]:
    folder = root / "ImageNet16"
    folder.mkdir()
    pixels = {}
    for i, (file, y) in enumerate(labels.items()):
        pixels[file] = np.random.default_rng(i).integers(0, 256, (len(y), 768), dtype=np.uint8)
        entry = {"data": pixels[file], "labels": y, "mean": pixels[file].mean(0)}
        (folder / file).write_bytes(pickle.dumps(entry, protocol))
    return pixels


@pytest.mark.parametrize("protocol", range(6))
def test_imagenet16_keeps_the_first_120_classes(tmp_path: Path, protocol: int) -> None:
    pixels = write_imagenet16(tmp_path, {"val_data": [120, 121, 1, 1000, 77]}, protocol)["val_data"]
    test = load_examples("imagenet16-120", "test", data_root=tmp_path)
    assert test.y.tolist() == [119, 0, 76]
    assert test.ids.tolist() == [0, 1, 2]
    assert test.x.dtype == np.uint8
    np.testing.assert_array_equal(test.x, pixels[[0, 2, 4]].reshape(3, 3, 16, 16))


def test_imagenet16_reads_its_ten_train_files_in_number_order(tmp_path: Path) -> None:
    files = [f"train_data_batch_{i}" for i in range(1, 11)]
    pixels = write_imagenet16(tmp_path, {file: [i + 1, 500] for i, file in enumerate(files)})
    train = load_examples("imagenet16-120", "train", data_root=tmp_path)
    assert train.y.tolist() == list(range(10))
    assert train.x.tobytes() == b"".join(pixels[file][0].tobytes() for file in files)
    with pytest.raises(UserError, match=r"1\.\.10 .*got 11"):
        load_examples("imagenet16-120", "train", 11, data_root=tmp_path)
    (tmp_path / "ImageNet16" / files[3]).unlink()
    assert load_examples("imagenet16-120", "train", 3, data_root=tmp_path).y.tolist() == [0, 1, 2]
    with pytest.raises(UserError, match=r"expects a file .*train_data_batch_4, found none: put the folder"):
        load_examples("imagenet16-120", "train", 4, data_root=tmp_path)


def python2_pickle(data: bytes, n: int) -> bytes:
    """Return what cPickle of Python 2 with numpy 1 writes for {'data': [n, 768] uint8, 'labels': [2] * n}."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        b"(K\x01(K" + bytes([n]) + b"M\x00\x03tcnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", len(data)) + data + b"tb"
    )
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels](" + b"K\x02" * n + b"eu."


def test_a_pickle_of_python_2_reads_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "ImageNet16").mkdir()
    data = bytes(range(256)) * 6
    (tmp_path / "ImageNet16" / "val_data").write_bytes(python2_pickle(data, 2))
    test = load_examples("imagenet16-120", data_root=tmp_path)
    assert test.x.tobytes() == data
    assert test.y.tolist() == [1, 1]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=">i4").reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.array([True, False]),
        np.arange(10, dtype=np.int64)[::3],
    ],
    ids=["big-endian", "fortran", "bool", "strided"],
)
def test_plain_arrays_survive_every_protocol(tmp_path: Path, array: np.ndarray, protocol: int) -> None:
    file = tmp_path / "p"
    content = pickle.dumps({"a": array}, protocol)
    versions = [content]
    if protocol < 4:  # names end in a newline there, so that they can be exchanged for those of numpy 1
        versions.append(content.replace(b"numpy._core.", b"numpy.core."))
        assert versions[1] != content
    for version in versions:
        file.write_bytes(version)
        read = read_arrays(file, ("a",))["a"]
        np.testing.assert_array_equal(read, array)
        assert read.dtype == array.dtype


class Evil:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_asks_to_run_something_is_refused(tmp_path: Path, protocol: int) -> None:
    import os

    trace = tmp_path / "it_ran"
    orders: list[object] = [
        Evil(os.system, f"touch {trace}"),
        Evil(eval, f"open({str(trace)!r}, 'w')"),
        Evil(getattr, Evil(__import__, "os"), "system"),
        Evil(np.load, str(trace)),
        Evil(Path, str(trace)),
    ]
    good = np.zeros((1, 768), np.uint8)
    file = tmp_path / "ImageNet16" / "val_data"
    file.parent.mkdir()
    for order in orders:
        hidden = np.empty(1, object)
        hidden[0] = order
        for content in (
            order,
            {"data": order, "labels": [1]},
            {"data": good, "labels": [1], "mean": [{"deep": (order,)}]},
            {"data": good, "labels": [1], order: 0} if protocol else order,
            {"data": hidden, "labels": [1]},
        ):
            file.write_bytes(pickle.dumps(content, protocol))
            with pytest.raises(UserError, match=r"it asks for .*nothing of it was run"):
                load_examples("imagenet16-120", data_root=tmp_path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, "a", None], object),
        np.zeros(2, [("a", "u1"), ("b", "f4")]),
        np.array(["text"]),
        np.array([b"bytes"]),
        np.array(["2020-01-01"], "M8[D]"),
        np.zeros(2, complex),
    ],
    ids=["object", "structure", "text", "bytes", "date", "complex"],
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_arrays_of_anything_but_numbers_are_refused(tmp_path: Path, array: np.ndarray, protocol: int) -> None:
    (tmp_path / "p").write_bytes(pickle.dumps({"a": array}, protocol))
    with pytest.raises(UserError, match="plain arrays"):
        read_arrays(tmp_path / "p", ("a",))


def test_a_pickle_cannot_change_the_reader(tmp_path: Path) -> None:
    from robustbench_bio.datasets import safe_pickle

    stand_ins = set(safe_pickle._STAND_INS.values())
    before = {c: dict(vars(c)) for c in stand_ins}
    for module, name in safe_pickle._STAND_INS:
        # BUILD on the class itself, with a dict for attributes and with (None, dict) for slots
        for state in (b"}U\x05valueK\x01s", b"(N}U\x05valueK\x01st"):
            (tmp_path / "p").write_bytes(f"c{module}\n{name}\n".encode() + state + b"b.")
            with pytest.raises(UserError, match="plain arrays"):
                read_arrays(tmp_path / "p", ("a",))
    assert {c: dict(vars(c)) for c in stand_ins} == before


def test_every_truncation_and_many_corruptions_of_a_pickle_end_in_a_user_error(tmp_path: Path) -> None:
    file = tmp_path / "p"
    rng = np.random.default_rng(0)
    for protocol in (0, 2, 4, 5):
        content = pickle.dumps({"data": np.arange(6, dtype=np.uint8), "labels": [1, 2, 3]}, protocol)
        for cut in range(len(content)):
            file.write_bytes(content[:cut])
            with pytest.raises(UserError, match=r"plain arrays"):
                read_arrays(file, ("data", "labels"))
        for place in range(len(content)):
            spoilt = bytearray(content)
            spoilt[place] = rng.choice(list(b"\x00(.0]}NabcdeK"))
            file.write_bytes(spoilt)
            try:
                read = read_arrays(file, ("data", "labels"))
            except UserError:
                continue
            assert {type(a) for a in read.values()} == {np.ndarray}
            assert all(a.dtype.kind in "biuf" for a in read.values())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2]}, r"\[N, 768\].*got uint8 \[2, 3072\]"),
        ({"data": np.zeros((2, 768), np.float32), "labels": [1, 2]}, "got float32"),
        ({"data": np.zeros((2, 768), np.uint8), "labels": [1]}, r"and \[1\]: use"),
        ({"data": np.zeros((2, 768), np.uint8), "labels": [0, 1]}, r"labels in 1\.\.1000"),
        ({"data": np.zeros((2, 768), np.uint8), "labels": [1, 1001]}, r"labels in 1\.\.1000"),
        ({"data": np.zeros((2, 768), np.uint8), "labels": np.array([1.0, 2.0])}, "integer labels"),
        ({"data": np.zeros((2, 768), np.uint8), "labels": [1, "2"]}, "a list instead of an array"),
        ({"data": np.zeros((2, 768), np.uint8)}, "'labels'"),
        ([1, 2], "plain arrays"),
    ],
)
def test_imagenet16_files_of_another_format_are_refused(tmp_path: Path, entry: object, message: str) -> None:
    (tmp_path / "ImageNet16").mkdir()
    (tmp_path / "ImageNet16" / "val_data").write_bytes(pickle.dumps(entry))
    with pytest.raises(UserError, match=message):
        load_examples("imagenet16-120", data_root=tmp_path)


# --- any .npz file -----------------------------------------------------------------------------------------


def write_npz(path: Path, **arrays: object) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return str(path)


def small_npz(path: Path) -> str:
    rng = np.random.default_rng(1)
    return write_npz(
        path,
        train_images=rng.integers(0, 256, (300, 6, 5, 3), np.uint8),
        train_labels=rng.integers(0, 3, (300, 1), np.uint8),
        val_images=np.zeros((2, 2)),
        test_images=rng.integers(0, 256, (7, 6, 5, 3), np.uint8),
        test_labels=np.array([4, 0, 1, 2, 3, 0, 1], np.int32),
    )


def test_an_npz_file_is_a_dataset_of_its_own(tmp_path: Path) -> None:
    path = small_npz(tmp_path / "own.npz")
    raw = np.load(path)
    data: Dataset = open_dataset(path)
    assert data.classes == ("0", "1", "2", "3", "4")
    assert data.shape == (3, 6, 5)
    np.testing.assert_allclose(data.mean, (raw["train_images"] / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.std, (raw["train_images"] / 255).std((0, 1, 2)), rtol=1e-12)
    for split in ("train", "test"):
        examples = load_examples(path, split, 6)
        np.testing.assert_array_equal(examples.x, raw[f"{split}_images"][:6].transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(examples.y, raw[f"{split}_labels"].ravel()[:6])
        assert examples.x.flags.c_contiguous
        assert examples.y.dtype == np.int64
        assert examples.ids.tolist() == list(range(6))
    with pytest.raises(UserError, match=r"1\.\.7 .*got 8"):
        load_examples(path, "test", 8)


def test_an_npz_file_of_grey_images_may_have_one_split_and_one_colour(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "g.npz", test_images=np.full((300, 4, 4), 51, np.uint8), test_labels=[0, 2, 1] * 100)
    data = open_dataset(path)
    assert data.shape == (1, 4, 4)
    assert data.mean == pytest.approx((0.2,))
    assert data.std == (1.0,)
    assert load_examples(path).x.shape == (300, 1, 4, 4)
    with pytest.raises(UserError, match=r"expected train_images and train_labels in .*found test_images, test_labels"):
        load_examples(path, "train")


def test_only_the_split_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from numpy.lib.npyio import NpzFile

    read: list[str] = []
    real = NpzFile.__getitem__
    monkeypatch.setattr(NpzFile, "__getitem__", lambda self, key: (read.append(key), real(self, key))[1])
    path = small_npz(tmp_path / "lazy.npz")
    load_examples(path, "test")
    assert sorted(read) == ["test_images", "test_labels"]
    read.clear()
    assert len(open_dataset(path).classes) == 5
    assert sorted(read) == ["test_labels", "train_labels"]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4), np.float32), [0, 1], "uint8 .*got float32"),
        (np.zeros((2, 28, 28, 28), np.uint8), [0, 1], "at most 4 channels, got uint8 .*28, 28, 28"),
        (np.zeros((2, 3, 32, 32), np.uint8), [0, 1], "channels last"),
        (np.zeros((2, 16), np.uint8), [0, 1], r"\[N, H, W\].*got uint8 \[2, 16\]"),
        (np.zeros((0, 4, 4), np.uint8), [], "got"),
        (np.zeros((2, 4, 4), np.uint8), [0, 1, 1], "2 images and 3 labels"),
        (np.zeros((2, 4, 4), np.uint8), [[0, 1], [1, 0]], r"got int64 \[2, 2\]: give one class number"),
        (np.zeros((2, 4, 4), np.uint8), [0.0, 1.0], "got float64"),
        (np.zeros((2, 4, 4), np.uint8), [-1, 1], "integers >= 0"),
        (np.zeros((2, 4, 4), np.uint8), 3, "got int64"),
        (np.array([None, 1]), [0, 1], "Object arrays cannot be loaded"),
    ],
)
def test_npz_arrays_that_are_not_images_and_labels_are_refused(
    tmp_path: Path, images: np.ndarray, labels: object, message: str
) -> None:
    path = write_npz(tmp_path / "bad.npz", test_images=images, test_labels=labels)
    with pytest.raises(UserError, match=message):
        load_examples(path)


def test_what_is_no_npz_file_is_refused(tmp_path: Path) -> None:
    good = Path(small_npz(tmp_path / "good.npz")).read_bytes()
    with pytest.raises(UserError, match=r"cannot read .*none\.npz: No such file"):
        open_dataset(str(tmp_path / "none.npz"))
    np.save(tmp_path / "one.npy", np.zeros(3))
    evil = pickle.dumps(Evil(Path.touch, tmp_path / "it_ran"))
    single = (tmp_path / "one.npy").read_bytes()
    for i, content in enumerate([b"", b"text", evil, single, good[:-30], good[: len(good) // 2]]):
        path = tmp_path / f"{i}.npz"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"to be an \.npz file of plain arrays, got: .+: write it anew"):
            open_dataset(str(path))
    spoilt = bytearray(good)
    spoilt[good.index(b"test_images") + 300] ^= 0xFF
    (tmp_path / "spoilt.npz").write_bytes(spoilt)
    with pytest.raises(UserError, match="CRC"):
        load_examples(str(tmp_path / "spoilt.npz"))
    with pytest.raises(UserError, match="found a, b"):
        open_dataset(write_npz(tmp_path / "other.npz", a=1, b=2))
    assert not (tmp_path / "it_ran").exists()


def test_a_file_can_stand_in_for_a_named_dataset(tmp_path: Path) -> None:
    x, y = PIXELS.reshape(40, 32, 32, 3), np.arange(40) % 10
    path = write_npz(tmp_path / "c.npz", test_images=x, test_labels=y)
    stand_in, named = open_dataset("cifar10", path), open_dataset("cifar10")
    for attribute in ("classes", "shape", "mean", "std", "licence", "augmentation"):
        assert getattr(stand_in, attribute) == getattr(named, attribute)
    examples = load_examples("cifar10", "test", 12, data_file=path)
    np.testing.assert_array_equal(examples.x, x[:12].transpose(0, 3, 1, 2))
    assert examples.y.tolist() == [*range(10), 0, 1]


def test_a_file_that_cannot_be_the_named_dataset_says_what_differs(tmp_path: Path) -> None:
    path = write_npz(
        tmp_path / "c.npz",
        train_images=PIXELS.reshape(40, 32, 32, 3),
        train_labels=np.arange(40) % 11,
        test_images=np.zeros((2, 28, 28), np.uint8),
        test_labels=[0, 1],
    )
    with pytest.raises(UserError, match=r"cifar10 expects images of shape \(3, 32, 32\), got \(1, 28, 28\)"):
        load_examples("cifar10", "test", data_file=path)
    with pytest.raises(UserError, match=r"cifar10 expects labels in 0\.\.9, got 10 in the train split"):
        load_examples("cifar10", "train", data_file=path)
    assert len(load_examples("cifar100", "train", data_file=path)) == 40
    with pytest.raises(UserError, match="expected one file"):
        load_examples(path, data_file=path)


def test_the_shared_cifar_file_stands_in_for_cifar10(cifar10_npz: Path) -> None:
    test = load_examples("cifar10", "test", data_file=cifar10_npz)
    assert test.x.shape == (846, 3, 32, 32)
    # the official test set begins with a cat, two ships and an aeroplane
    assert [open_dataset("cifar10").classes[k] for k in test.y[:4]] == ["cat", "ship", "ship", "airplane"]


def test_a_file_in_the_folder_stands_in_where_there_is_no_network_and_gives_way_to_the_official_ones(
    tmp_path: Path, cifar: Callable[[str], bytes]
) -> None:
    archive = cifar("CIFAR10")
    images = np.full((3, 32, 32, 3), 7, np.uint8)
    np.savez(tmp_path / "cifar10.npz", test_images=images, test_labels=np.arange(3))
    found = load_examples("cifar10", "test", data_root=tmp_path)
    assert found.x.shape == (3, 3, 32, 32)
    assert (found.x == 7).all()
    with pytest.raises(UserError, match=r"expected train_images and train_labels in .*cifar10\.npz, found test_images"):
        load_examples("cifar10", "train", data_root=tmp_path)
    official = tmp_path / "official"
    official.mkdir()
    (official / "cifar-10-python.tar.gz").write_bytes(archive)
    load_examples("cifar10", "test", data_root=official)  # unpacks it
    np.savez(official / "cifar10.npz", test_images=images, test_labels=np.arange(3))
    assert load_examples("cifar10", "test", data_root=official).x.tobytes() == PIXELS[25:30].tobytes()
