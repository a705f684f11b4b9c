"""Event cameras: CIFAR10-DVS and DVS128-Gesture from their original files, as counts of events in bins of time.

Own readers in numpy: tonic downloads re-encoded copies of both sets instead and brings librosa with it, and
spikingjelly, which reads the originals too and agrees in the tests, brings tensorboard and torchaudio.
"""

import csv
import io
import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import numpy as np
from numpy.typing import NDArray

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.files import read_file
from robustbench_bio.datasets.base import DATASETS, Dataset, Examples, Split, count
from robustbench_bio.datasets.cifar import Cifar10

#: Side of both sensors, in pixels.
SENSOR = 128

#: Bytes of one file; the largest recording of DVS128-Gesture is a tenth of this.
MAX_BYTES = 2**31

_PACKET = np.dtype(
    [("type", "<u2"), ("source", "<u2"), *((name, "<u4") for name in ("size", "offset", "overflow"))]
    + [(name, "<u4") for name in ("capacity", "number", "valid")]
)


@dataclass(frozen=True)
class Events:
    """Changes of brightness, in the order of the file.

    Args:
        t: int64 [E], microseconds.
        x: int64 [E], column, from the left.
        y: int64 [E], row, from the top.
        p: int64 [E], 1 where it got brighter, 0 where darker.
    """

    t: NDArray[np.int64]
    x: NDArray[np.int64]
    y: NDArray[np.int64]
    p: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.t)

    def between(self, start: int, end: int) -> "Events":
        """Return the events with start ≤ t < end."""
        rows = (self.t >= start) & (self.t < end)
        return Events(self.t[rows], self.x[rows], self.y[rows], self.p[rows])


def read_aedat2(path: Path) -> Events:
    """Read a recording of CIFAR10-DVS: AEDAT 2.0 of a DVS128, addresses and times signed and big-endian.

    Rows and columns of the file are exchanged and run backwards; here they are those of the image. Bit 0 is taken for
    darker, as spikingjelly does; tonic and iniVation's description of the format take it for brighter, which only
    exchanges the two channels. Signals at the camera's plug (bit 15) are no pixel's and left out.

    Source of the format: docs.inivation.com, AEDAT 1.0 (addresses of a DVS128) and 2.0.

    Raises:
        UserError: no such file, another format, no events, or a file that was cut short.
    """
    data = read_file(path, MAX_BYTES)
    start = _after_header(path, data, b"#!AER-DAT2.0")
    spare = (len(data) - start) % 8
    if spare:
        raise UserError(f"expected events of 8 bytes in {path}, got {spare} bytes more: cut short, copy it again")
    address, t = np.frombuffer(data, ">i4", offset=start).astype(np.int64).reshape(-1, 2).T
    address, t = address[address >> 15 & 1 == 0], t[address >> 15 & 1 == 0]
    last = SENSOR - 1
    events = Events(t, last - (address >> 8 & last), last - (address >> 1 & last), 1 - (address & 1))
    return _some(path, events)


def read_aedat3(path: Path) -> Events:
    """Read a recording of DVS128-Gesture: the polarity events of an AEDAT 3.1 file, little-endian packets.

    Packets of other events are passed over; events that the file itself marks as not valid, and room that a packet
    keeps but does not fill, are left out. Rows count from the top, unlike in AEDAT 3.0.

    Source of the format: research.ibm.com/interactive/dvsgesture, and docs.inivation.com, AEDAT 3.1.

    Raises:
        UserError: no such file, another format, packed events, no events, or a file that was cut short.
    """
    data = read_file(path, MAX_BYTES)
    place = _after_header(path, data, b"#!AER-DAT3.1")
    written = re.search(rb"^#Format:[ \t]*([^\r\n]*)", data[:place], re.MULTILINE)
    if written is not None and written[1].strip() != b"RAW":
        got = written[1][:40].decode("ascii", "replace")
        raise UserError(f"expected events as they are (#Format: RAW) in {path}, got {got!r}: not the original file")
    word, t = np.concatenate([np.empty((2, 0), np.int64), *_packets(path, data, place)], 1)
    events = Events(t, word >> 17 & 0x7FFF, word >> 2 & 0x7FFF, word >> 1 & 1)
    if len(events) and max(events.x.max(), events.y.max()) >= SENSOR:
        raise UserError(f"expected {SENSOR} rows and columns in {path}, got more: not of this camera")
    return _some(path, events)


def _packets(path: Path, data: bytes, place: int) -> Iterator[NDArray[np.int64]]:
    """Yield the valid polarity events of each packet from byte `place` on: words and times in microseconds [2, n]."""
    while place < len(data):
        packet = np.frombuffer(data, _PACKET, 1, place)[0] if len(data) - place >= _PACKET.itemsize else None
        end = place + _PACKET.itemsize + (int(packet["capacity"]) * int(packet["size"]) if packet is not None else 0)
        if packet is None or end > len(data):
            raise UserError(f"expected a whole packet at byte {place} of {path}, got its beginning: copy it again")
        if packet["type"] == 1:
            if packet["size"] != 8:
                raise UserError(f"expected events of 8 bytes in {path}, got {packet['size']}: not of this camera")
            word, t = np.frombuffer(data, "<u4", 2 * int(packet["capacity"]), place + _PACKET.itemsize).reshape(-1, 2).T
            pair = np.stack([word.astype(np.int64), t.astype(np.int64) | int(packet["overflow"]) << 31])
            yield pair if packet["valid"] == packet["capacity"] else pair[:, pair[0] & 1 == 1]
        place = end


def framed(events: Events, steps: int, size: int = SENSOR) -> NDArray[np.uint8]:
    """Count events in equal bins of time: uint8 [steps, 2, size, size], darker before brighter, 255 and more as 255.

    A pixel of a smaller map counts every event by the share of its area that falls into it, rounded to whole events.

    The `steps` bins go from the first event to the last; `size` is at most the sensor's. Raises `UserError` for no
    events, or steps or size out of range.
    """
    if steps < 1 or not 1 <= size <= SENSOR:
        raise UserError(f"expected steps >= 1 and size in 1..{SENSOR}, got {steps} and {size}: choose others")
    if not len(events):
        raise UserError("expected at least one event to fill frames with, got none: take a longer interval")
    start, end = int(events.t.min()), int(events.t.max())
    step = (events.t - start) * steps // (end - start + 1)
    place = ((step * 2 + events.p) * SENSOR + events.y) * SENSOR + events.x
    counts = np.bincount(place, minlength=steps * 2 * SENSOR**2).reshape(steps, 2, SENSOR, SENSOR)
    if size < SENSOR:
        edges = np.arange(size + 1) * SENSOR / size
        pixel = np.arange(SENSOR)
        share = (np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)).clip(0)
        counts = np.rint(share @ counts @ share.T)
    return np.minimum(counts, 255).astype(np.uint8)


class EventDataset(Dataset):
    """Recordings as T frames of two channels in a row: an input of 1/255 is one event.

    Networks that take time apart read them with `coding = "frames"` and as many `steps`, T. Nothing is subtracted, and
    the unit inside the network is one event.
    """

    steps: ClassVar[int] = 10
    shape = (20, 48, 48)
    mean = (0.0,) * 20
    std = (1 / 255,) * 20

    def load(self, split: Split, root: Path, n_examples: int | None = None) -> Examples:
        """Return the first `n_examples` of a split, which takes turns with the classes where the files allow it."""
        labels = self.labels(split, root)
        n = count(n_examples, len(labels))
        x = np.empty((n, *self.shape), np.uint8)
        for row, events in zip(range(n), self.recordings(split, root), strict=False):
            x[row] = framed(events, self.steps, self.shape[1]).reshape(self.shape)
        return Examples(x, np.array(labels[:n], np.int64), np.arange(n))

    @abstractmethod
    def labels(self, split: Split, root: Path) -> list[int]:
        """Return the label of every example of a split."""

    @abstractmethod
    def recordings(self, split: Split, root: Path) -> Iterator[Events]:
        """Yield the events of every example, in the order of `labels`."""


@final
@DATASETS.register("cifar10-dvs")
class Cifar10Dvs(EventDataset):
    """CIFAR10-DVS: 10,000 images of CIFAR-10 seen by an event camera, 10 frames of 48×48.

    Read from root/cifar10-dvs/<class>/cifar10_<class>_<number>.aedat; numbers from 900 are for test, as usual (the
    source has no split).

    Source: Li, Liu, Ji, Li & Shi 2017, "CIFAR10-DVS: an event-stream dataset for object classification"; the authors'
    files, one zip a class, at figshare.com/articles/dataset/CIFAR10-DVS_New/4724671. The .aedat4 files that tonic
    downloads are another encoding of them and are not read.
    """

    licence = "see figshare.com/articles/dataset/CIFAR10-DVS_New/4724671"
    classes = Cifar10.classes

    def labels(self, split: Split, root: Path) -> list[int]:
        return [label for label, _ in self._files(split, root)]

    def recordings(self, split: Split, root: Path) -> Iterator[Events]:
        return (read_aedat2(path) for _, path in self._files(split, root))

    def _files(self, split: Split, root: Path) -> list[tuple[int, Path]]:
        """Return (label, file), the lowest number of each class first."""
        files = []
        for label, name in enumerate(self.classes):
            folder = root / "cifar10-dvs" / name
            numbers = (re.fullmatch(rf"cifar10_{name}_(\d{{1,4}})\.aedat", path.name) for path in folder.glob("*"))
            mine = [int(number[1]) for number in numbers if number and (int(number[1]) >= 900) == (split == "test")]
            if not mine:
                raise UserError(
                    f"cifar10-dvs expects {split} files {folder}/cifar10_{name}_*.aedat, found none: download "
                    f"{name}.zip from figshare.com/articles/dataset/CIFAR10-DVS_New/4724671 and unpack it there"
                )
            files += [(number, label, folder / f"cifar10_{name}_{number}.aedat") for number in mine]
        return [(label, path) for _, label, path in sorted(files)]


@final
@DATASETS.register("dvs128-gesture")
class Dvs128Gesture(EventDataset):
    """DVS128-Gesture: 11 hand and arm gestures of 29 people before an event camera, 10 frames of 48×48.

    Read from root/dvs128-gesture/DvsGesture: trials_to_train.txt and trials_to_test.txt name the recordings of each
    split, and <recording>_labels.csv says when each gesture starts and ends (class, startTime_usec, endTime_usec).
    Times are kept as published, also where a gesture ends after the next one has begun (class 9 of user22_led).

    Source: Amir et al. 2017, "A low power, fully event-based gesture recognition system"; files and licence at
    research.ibm.com/interactive/dvsgesture. What tonic downloads was cut and rounded to milliseconds and is not read.
    """

    licence = "CC BY 4.0, IBM Research, research.ibm.com/interactive/dvsgesture"
    classes = (
        "hand_clapping", "right_hand_wave", "left_hand_wave", "right_arm_clockwise", "right_arm_counter_clockwise",
        "left_arm_clockwise", "left_arm_counter_clockwise", "arm_roll", "air_drums", "air_guitar", "other_gestures",
    )  # fmt: skip

    def labels(self, split: Split, root: Path) -> list[int]:
        return [label for path in self._trials(split, root) for label, _, _ in self._gestures(path)]

    def recordings(self, split: Split, root: Path) -> Iterator[Events]:
        for path in self._trials(split, root):
            whole = read_aedat3(path)
            for label, start, end in self._gestures(path):
                part = whole.between(start, end)
                if not len(part):
                    raise UserError(f"expected events of {self.classes[label]} in {path}, got none: copy it again")
                yield part

    def _trials(self, split: Split, root: Path) -> list[Path]:
        folder = root / "dvs128-gesture" / "DvsGesture"
        listed = folder / f"trials_to_{split}.txt"
        if not listed.is_file():
            raise UserError(
                f"dvs128-gesture expects {listed}, which is not there: download DvsGesture.tar.gz from "
                f"ibm.ent.box.com/s/3hiq58ww1pbbjrinh367ykfdf60xsfm8 (the folder that research.ibm.com/interactive/"
                f"dvsgesture points to) and unpack it in {folder.parent}"
            )
        names = [line.strip() for line in _text(listed).splitlines() if line.strip()]
        for name in names:
            if not re.fullmatch(r"[\w-]+\.aedat", name):
                raise UserError(f"expected names of .aedat files in {listed}, got {name[:80]!r}: copy it again")
        return [folder / name for name in names]

    def _gestures(self, path: Path) -> list[tuple[int, int, int]]:
        """Return (label, start, end) of each gesture of a recording, times in microseconds."""
        labels = path.with_name(f"{path.stem}_labels.csv")
        rows = list(csv.reader(io.StringIO(_text(labels))))[1:]
        gestures = []
        for row in rows:
            numbers = [int(cell) for cell in row if re.fullmatch(r"\s*\d{1,12}\s*", cell)]
            if len(row) != 3 or len(numbers) != 3 or not 1 <= numbers[0] <= len(self.classes):
                raise UserError(f"expected class, start and end in {labels}, got {','.join(row)[:80]!r}: copy it again")
            gestures.append((numbers[0] - 1, numbers[1], numbers[2]))
        return gestures


def _text(path: Path) -> str:
    data = read_file(path, 1_000_000)
    if not data.isascii():
        raise UserError(f"expected a short text in {path}, got something else: copy it again")
    return data.decode("ascii")


def _after_header(path: Path, data: bytes, version: bytes) -> int:
    """Return where the events begin: after the lines that start with #, or after the one that says so."""
    if not data.startswith(version):
        got = data[:12].decode("ascii", "replace")
        raise UserError(f"expected {version.decode()} at the start of {path}, got {got!r}: not the original file")
    place = 0
    while data[place : place + 1] == b"#":
        end = data.find(b"\n", place) + 1
        if end == 0:
            raise UserError(f"expected events after the header of {path}, got none: cut short, copy it again")
        line, place = data[place:end], end
        if line.startswith(b"#!END-HEADER"):
            break
    return place


def _some(path: Path, events: Events) -> Events:
    if not len(events):
        raise UserError(f"expected events in {path}, got none: cut short, copy it again")
    return events
