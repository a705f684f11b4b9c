"""Adversarial examples of an entry as images that a page can hold."""

import base64
import struct
import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustbench_bio.records.entry import Entry, Gallery


class Image(NamedTuple):
    """One example of a gallery, pictures as data URIs."""

    id: int
    label: int
    prediction: int
    clean: str
    delta: str
    adversarial: str


def images(gallery: Gallery | None) -> list[Image]:
    """Return a gallery's examples; nothing where its shape is none of an image."""
    if gallery is None or min(gallery.shape) < 1 or not gallery.ids:
        return []
    shape = (len(gallery.ids), *gallery.shape)
    clean = np.frombuffer(base64.b64decode(gallery.x), dtype=np.uint8).reshape(shape)
    delta = np.frombuffer(base64.b64decode(gallery.delta), dtype=np.int8).reshape(shape).astype(np.int16)
    adversarial = np.rint(clean + delta * (gallery.eps * 255 / 127)).clip(0, 255).astype(np.uint8)
    grey = (128 + delta).clip(0, 255).astype(np.uint8)
    rows = zip(gallery.ids, gallery.labels, gallery.predictions, clean, grey, adversarial, strict=True)
    return [Image(i, y, p, *map(png, three)) for i, y, p, *three in rows]


def magnified(gallery: Gallery) -> str:
    """Return how many times larger a perturbation is drawn than it is: eps takes half the range."""
    return f"{127 / (255 * gallery.eps):.3g}"


def followed_gradient(entry: Entry) -> str:
    """Return what the gallery's attack followed: the exact, or for a network with thresholds a surrogate."""
    soft = any(measured.spec.gradient.surrogate for measured in entry.measurements)
    return "a surrogate" if soft else "the exact"


def png(pixels: NDArray[np.uint8]) -> str:
    """Return an image as a data URI.

    pixels [3, H, W] are colours; of any other number of channels the first is shown in grey.
    """
    colours = pixels.shape[0] == 3
    rows = pixels.transpose(1, 2, 0) if colours else pixels[0]
    height, width = rows.shape[:2]
    # Each row starts with its filter: 0 is none.
    lines = np.zeros((height, 1 + width * (3 if colours else 1)), dtype=np.uint8)
    lines[:, 1:] = rows.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if colours else 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 1)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
