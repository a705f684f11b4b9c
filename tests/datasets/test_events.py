import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from robustbench_bio import datasets, nets
from robustbench_bio.core.errors import UserError
from robustbench_bio.datasets import load_examples, open_dataset
from robustbench_bio.datasets.events import Events, framed, read_aedat2, read_aedat3
from robustbench_bio.nets import Inputs

AEDAT2 = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n# created Mon Jan 1 2017\r\n"
AEDAT3 = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#Start-Time: 2016-09-20\r\n#!END-HEADER\r\n"


def events(n: int, seed: int = 0, start: int = 0, end: int = 1_000_000) -> Events:
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(start, end, n))
    return Events(t, rng.integers(0, 128, n), rng.integers(0, 128, n), rng.integers(0, 2, n))


def same(one: Events, other: Events) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in "txyp")


def aedat2(found: Events) -> bytes:
    """Write as a DVS128 under jAER does: address and time big-endian; row, column and polarity the other way round."""
    rows = zip(found.t, found.x, found.y, found.p, strict=True)
    return AEDAT2 + b"".join(
        struct.pack(">II", (127 - int(x)) << 8 | (127 - int(y)) << 1 | (1 - int(p)), int(t)) for t, x, y, p in rows
    )


def packet(found: Events, kind: int = 1, size: int = 8, valid: NDArray[np.int64] | None = None) -> bytes:
    """Write as libcaer does: 28 bytes of header, then data and time little-endian, bit 0 of the data for valid."""
    kept = np.ones(len(found), np.int64) if valid is None else valid
    overflow = int(found.t[0]) >> 31
    head = struct.pack("<HHIIIIII", kind, 1, size, 4, overflow, len(found), len(found), int(kept.sum()))
    rows = zip(found.t, found.x, found.y, found.p, kept, strict=True)
    return head + b"".join(
        struct.pack("<II", int(x) << 17 | int(y) << 2 | int(p) << 1 | int(v), int(t) & 0x7FFFFFFF)
        for t, x, y, p, v in rows
    )


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# --- the formats -----------------------------------------------------------------------------------------


def test_aedat2_gives_back_what_was_written(tmp_path: Path) -> None:
    found = events(500)
    assert same(read_aedat2(written(tmp_path / "a.aedat", aedat2(found))), found)


def test_aedat3_gives_back_what_was_written_over_packets_and_overflows(tmp_path: Path) -> None:
    first, second = events(300), events(200, 1, start=2**31 + 5, end=2**31 + 9_000)
    special = packet(events(4, 2), kind=0)
    path = written(tmp_path / "a.aedat", AEDAT3 + packet(first) + special + packet(second))
    both = Events(*(np.concatenate([getattr(first, name), getattr(second, name)]) for name in "txyp"))
    assert same(read_aedat3(path), both)


def test_events_that_the_file_calls_invalid_are_left_out(tmp_path: Path) -> None:
    found, valid = events(50), np.arange(50) % 3
    valid = (valid == 0).astype(np.int64)
    read = read_aedat3(written(tmp_path / "a.aedat", AEDAT3 + packet(found, valid=valid)))
    assert read.t.tolist() == found.t[valid == 1].tolist()


def test_addresses_are_those_of_the_published_layout(tmp_path: Path) -> None:
    # AEDAT 2.0 of a DVS128: bits 14–8, 7–1 and 0; bit 15 is a signal at the plug. AEDAT 3.1: 31–17, 16–2, 1, 0 valid.
    words = [(0x7F00, -3), (0x00FE, 0), (0x0001, 7), (0x8000 | 0x0102, 8)]
    two = read_aedat2(written(tmp_path / "2.aedat", AEDAT2 + b"".join(struct.pack(">ii", *word) for word in words)))
    assert (two.x.tolist(), two.y.tolist()) == ([0, 127, 127], [127, 0, 127])
    assert (two.p.tolist(), two.t.tolist()) == ([1, 1, 0], [-3, 0, 7])  # times are signed
    data = struct.pack("<HHIIIIII", 1, 0, 8, 4, 3, 2, 2, 2) + struct.pack("<IIII", 127 << 17 | 3, 5, 90 << 2 | 1, 6)
    three = read_aedat3(written(tmp_path / "3.aedat", AEDAT3 + data))
    assert (three.x.tolist(), three.y.tolist(), three.p.tolist()) == ([127, 0], [0, 90], [1, 0])
    assert three.t.tolist() == [3 * 2**31 + 5, 3 * 2**31 + 6]


def test_other_packets_and_room_that_is_not_filled_are_passed_over(tmp_path: Path) -> None:
    found = events(5)
    motion = struct.pack("<HHIIIIII", 3, 1, 36, 4, 0, 2, 2, 2) + bytes(range(72))
    # A packet of 8 places, of which 5 hold events and the rest zeros.
    whole = packet(found)
    wide = struct.pack("<HHIIIIII", 1, 1, 8, 4, 0, 8, 5, 5) + whole[28:] + bytes(24)
    path = written(tmp_path / "a.aedat", AEDAT3 + motion + wide + motion + whole)
    assert read_aedat3(path).t.tolist() == found.t.tolist() * 2


def test_spikingjelly_reads_the_same(tmp_path: Path) -> None:
    pytest.importorskip("spikingjelly")
    try:
        from spikingjelly.datasets import cifar10_dvs as cifar
        from spikingjelly.datasets import utils
    except (ImportError, RuntimeError) as error:  # its torchaudio is absent or of another CUDA version than torch
        pytest.skip(f"spikingjelly cannot be imported: {error}")
    found = events(300)
    two = cifar._load_origin_data(written(tmp_path / "two.aedat", aedat2(found)))
    three = utils.load_aedat_v3(written(tmp_path / "three.aedat", AEDAT3 + packet(found)))
    for theirs in (two, three):
        assert same(Events(*(np.asarray(theirs[name]).astype(np.int64) for name in "txyp")), found)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (aedat2(events(20))[:-3], "expected events of 8 bytes in .*, got 5 bytes more: cut short"),
        (AEDAT2, "expected events in .*, got none: cut short"),
        (AEDAT2[:-4], "expected events after the header of .*, got none: cut short"),
        (AEDAT3 + packet(events(9)), "expected #!AER-DAT2.0 at the start of .*, got '#!AER-DAT3.1': not the original"),
        (b"", "expected #!AER-DAT2.0 at the start of .*, got ''"),
    ],
)
def test_a_damaged_aedat2_file_is_refused_in_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_aedat2(written(tmp_path / "a.aedat", data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            AEDAT3 + packet(events(20))[:-3],
            f"expected a whole packet at byte {len(AEDAT3)} of .*, got its beginning: copy it again",
        ),
        (AEDAT3 + packet(events(20)) + b"12345", f"expected a whole packet at byte {len(AEDAT3) + 188} of"),
        (
            AEDAT3 + struct.pack("<HHIIIIII", 1, 1, 2**31, 4, 0, 2**31, 1, 1),
            f"expected a whole packet at byte {len(AEDAT3)} of",
        ),
        (AEDAT3 + packet(events(20), size=16) + bytes(160), "expected events of 8 bytes in .*, got 16"),
        (AEDAT3 + packet(events(20), kind=2), "expected events in .*, got none"),
        (AEDAT3 + packet(Events(*np.array([[1], [200], [0], [1]]))), "expected 128 rows and columns in"),
        (
            AEDAT3.replace(b"RAW", b"SerializedTS") + packet(events(20)),
            r"expected events as they are \(#Format: RAW\) in .*, got 'SerializedTS'",
        ),
        (aedat2(events(20)), "expected #!AER-DAT3.1 at the start of .*, got '#!AER-DAT2.0'"),
    ],
)
def test_a_damaged_aedat3_file_is_refused_in_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_aedat3(written(tmp_path / "a.aedat", data))
    assert "\n" not in str(caught.value)


# --- frames ----------------------------------------------------------------------------------------------


def test_frames_count_each_event_once_in_its_bin() -> None:
    found = events(3_000)
    frames = framed(found, 4)
    expected = np.zeros((4, 2, 128, 128), int)
    length = found.t[-1] - found.t[0] + 1
    for t, x, y, p in zip(found.t, found.x, found.y, found.p, strict=True):
        expected[int((t - found.t[0]) * 4 // length), p, y, x] += 1
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, expected)
    assert frames.sum() == 3_000


def test_a_smaller_map_keeps_the_events_of_each_area() -> None:
    # 40 events in each of 128² pixels: a map of half the side has 160 in each, one of 48² 40·(128/48)².
    y, x = np.divmod(np.tile(np.arange(128**2), 40), 128)
    flat = Events(np.zeros(len(x), np.int64), x, y, np.ones(len(x), np.int64))
    assert (framed(flat, 1, 64)[0, 1] == 160).all()
    assert (framed(flat, 1, 64)[0, 0] == 0).all()
    assert (framed(Events(flat.t[: 128**2], x[: 128**2], y[: 128**2], flat.p[: 128**2]), 1, 48)[0, 1] == 7).all()
    assert (framed(flat, 1, 48)[0, 1] == 255).all()  # 284.4, the most that a byte holds


def test_a_moment_fills_the_first_of_its_frames() -> None:
    frames = framed(Events(*np.array([[7, 7], [1, 1], [2, 2], [0, 1]])), 3)
    assert frames.sum((1, 2, 3)).tolist() == [2, 0, 0]


@pytest.mark.parametrize(("steps", "size"), [(0, 48), (-1, 48), (4, 0), (4, 129)])
def test_no_frames_of_no_steps(steps: int, size: int) -> None:
    with pytest.raises(UserError, match=r"expected steps >= 1 and size in 1\.\.128, got"):
        framed(events(10), steps, size)


def test_no_frames_of_no_events() -> None:
    with pytest.raises(UserError, match="expected at least one event"):
        framed(events(10).between(-5, -1), 4)


# --- the data sets ---------------------------------------------------------------------------------------


@pytest.fixture
def cifar_root(tmp_path: Path) -> Path:
    for label, name in enumerate(open_dataset("cifar10-dvs").classes):
        for number in (3, 21, 900, 999):
            path = tmp_path / "cifar10-dvs" / name / f"cifar10_{name}_{number}.aedat"
            written(path, aedat2(events(60, 1000 * label + number)))
    return tmp_path


@pytest.fixture
def gesture_root(tmp_path: Path) -> Path:
    folder = tmp_path / "dvs128-gesture" / "DvsGesture"
    written(folder / "trials_to_train.txt", b"user01_led.aedat\nuser02_lab.aedat\n")
    written(folder / "trials_to_test.txt", b"user24_led.aedat\n")
    for seed, name in enumerate(("user01_led", "user02_lab", "user24_led")):
        written(folder / f"{name}.aedat", AEDAT3 + packet(events(400, seed)))
        table = "class,startTime_usec,endTime_usec\r\n1,100000,400000\r\n11,500000,900000\r\n"
        written(folder / f"{name}_labels.csv", table.encode())
    return tmp_path


def test_cifar10_dvs_is_read_and_split_by_number(cifar_root: Path) -> None:
    train, test = (load_examples("cifar10-dvs", split, data_root=cifar_root) for split in ("train", "test"))
    assert train.x.shape == test.x.shape == (20, 20, 48, 48)
    assert train.y.tolist() == test.y.tolist() == [*range(10), *range(10)]
    expected = framed(events(60, 1000 * 4 + 900), 10, 48).reshape(20, 48, 48)
    assert np.array_equal(test.x[4], expected)
    few = load_examples("cifar10-dvs", "test", 3, data_root=cifar_root)
    assert np.array_equal(few.x, test.x[:3])


def test_gestures_are_cut_out_by_their_times(gesture_root: Path) -> None:
    train, test = (load_examples("dvs128-gesture", split, data_root=gesture_root) for split in ("train", "test"))
    assert train.y.tolist() == [0, 10, 0, 10]
    assert test.y.tolist() == [0, 10]
    expected = framed(events(400, 1).between(500_000, 900_000), 10, 48).reshape(20, 48, 48)
    assert np.array_equal(train.x[3], expected)


@pytest.mark.parametrize("name", ["cifar10-dvs", "dvs128-gesture"])
def test_missing_files_are_asked_for_in_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{name} expects .*: download .* unpack it") as caught:
        load_examples(name, "test", 2, data_root=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "trials_to_test.txt",
            b"../../secret.aedat\n",
            r"expected names of .aedat files in .*, got '../../secret.aedat'",
        ),
        ("trials_to_test.txt", b"user99_led.aedat\n", "cannot read .*user99_led.*: No such file"),
        ("trials_to_test.txt", b"x" * 1_000_001, "expected a file of at most 1,000,000 bytes"),
        ("user24_led_labels.csv", b"class,start,end\n12,1,2\n", "expected class, start and end in .*, got '12,1,2'"),
        ("user24_led_labels.csv", b"class,start,end\n1,a,2\n", "expected class, start and end in .*, got '1,a,2'"),
        ("user24_led_labels.csv", b"class,start,end\n2,5,5\n", "expected events of right_hand_wave in .*, got none"),
    ],
)
def test_tables_that_are_wrong_are_refused(gesture_root: Path, file: str, content: bytes, message: str) -> None:
    (gesture_root / "dvs128-gesture" / "DvsGesture" / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_examples("dvs128-gesture", "test", data_root=gesture_root)


def test_a_spiking_network_takes_the_frames_one_after_the_other(gesture_root: Path) -> None:
    import torch

    data = open_dataset("dvs128-gesture")
    inputs = Inputs(data.shape, len(data.classes), data.mean, data.std)
    net = nets.build("spiking-resnet", inputs, seed=0, blocks=1, width=4, steps=10, coding="frames").eval()
    x = torch.from_numpy(datasets.load_examples("dvs128-gesture", "test", data_root=gesture_root).x).float() / 255
    seen: list[torch.Tensor] = []
    net.stem.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    assert net(x).shape == (2, 11)
    frames = seen[0].view(10, 2, 2, 48, 48)
    torch.testing.assert_close(frames[7, 1], x[1, 14:16] * 255)  # the unit inside is one event
