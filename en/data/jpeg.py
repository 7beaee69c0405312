"""Parts of images, resized, at the price of the part: JPEG files and pixels in memory to RGB, Pillow's to the bit.

A JPEG file of one sequential Huffman-coded scan is decoded by jpeg_native/, compiled when first used: its coefficients
from the last restart marker before the part on, the DCT of the part alone. All others are decoded by Pillow, or by
FFCV's libjpeg where that is installed, which tells what it is not sure of (see en.data.decoding). Where there is no
compiler, they do all of it: the same pixels, later, and with less said of what is damaged.

Which pixels: those of the whole image as libjpeg decodes it (exact DCT, interpolated chroma), then RESAMPLING.
"""

import ctypes
import functools
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from en.data.decoding import decode as decode_file
from en.data.decoding import decoders
from en.data.decoding import refusal as refusal_of
from en.data.order import Ints
from en.data.views import Flips
from en.errors import warn
from en.native.cache import ALONE, compiled_library

SOURCE = Path(__file__).with_name("jpeg_native") / "jpeg.cpp"

RESAMPLING = "pillow-13"
"""Which resize this is, for what makes a run's bits: `Image.resize(size, BILINEAR)` of Pillow 13, which takes the
vertical pass first where that is less work; up to Pillow 12 the horizontal one was always first. By any Pillow."""

RESTART_INTERVAL = 4  # MCUs between restart markers of transcoded files: measured in docs/measurements.md

# jpeg_native/file.hpp's Status
DONE, NOT_HANDLED, OTHER_SIZE, BAD_BOX, NO_ROOM, NO_MEMORY = 0, 1, 8, 9, 10, 11
DAMAGE = {
    2: "a header that is malformed",
    3: "a table that is malformed",
    4: "a Huffman code that is not in its table",
    5: "a coefficient past the 64th of its block",
    6: "an interval that does not end at its restart marker",
    7: "data that ends too early",
    12: "a scan that does not follow from those before it",
}


class Images(NamedTuple):
    """Images as they lie in memory.

    Attributes:
        addresses, lengths: (N,) of each file, bytes.
        heights, widths: (N,) pixels.
        raw: (N,) whether it is no file but pixels, (height, width, 3) uint8.
    """

    addresses: NDArray[np.uint64]
    lengths: Ints
    heights: Ints
    widths: Ints
    raw: NDArray[np.bool_]


def of_pixels(pixels: NDArray[np.uint8]) -> Images:
    """One image in memory, (H, W, 3) contiguous, which the caller keeps there."""
    (height, width), count = pixels.shape[:2], np.ones(1, np.int64)
    address = np.array([pixels.ctypes.data], np.uint64)
    return Images(address, pixels.size * count, height * count, width * count, np.ones(1, bool))


class Views(NamedTuple):
    """Views of images: a box of each is cut out and resized, and of that a window of the batch's size is shown.

    Attributes:
        boxes: (N, 4) top, left, height, width; the filter does not see beyond it.
        resized: (N, 2) height, width that the box is resized to.
        windows: (N, 2) top, left of the window in that.
        flips: (N,) whether the window is mirrored.
        size: height, width of the windows.
    """

    boxes: Ints
    resized: Ints
    windows: Ints
    flips: Flips
    size: tuple[int, int]


def crop_resize(boxes: Ints, flips: Flips, size: tuple[int, int]) -> Views:
    """Views of boxes (N, 4) that are cut out, then resized to `size`: as torchvision's resized_crop of PIL images."""
    resized = np.broadcast_to(np.array(size, np.int64), (len(boxes), 2))
    return Views(boxes, resized, np.zeros_like(resized), flips, size)


def resize_crop(heights: Ints, widths: Ints, shorter: int, size: tuple[int, int]) -> Views:
    """Views of whole images whose shorter side is resized to `shorter` pixels, then of the centre: as torchvision's.

    Raises: ValueError if the window is larger than a resized image.
    """
    sides = np.stack([heights, widths], axis=1)
    resized = shorter * sides // sides.min(1, keepdims=True)
    windows = np.rint((resized - np.array(size)) / 2).astype(np.int64)  # halves to even, as Python's round
    if (resized < np.array(size)).any():
        raise ValueError(
            f"size {size[0]} x {size[1]}: expected at most {shorter} x {shorter}, the shorter side resized"
        )
    boxes = np.concatenate([np.zeros_like(sides), sides], axis=1)
    return Views(boxes, resized, windows, np.zeros(len(heights), bool), size)


def decode(images: Images, views: Views, out: Tensor) -> dict[int, str]:
    """Decodes what is shown of N images into `out`, (N, height, width, 3) uint8, without the GIL.

    The caller's threads each take a part of a batch; pixels do not depend on how many there are.

    Returns: what is wrong with each image that is damaged, by its row, whose pixels are then undefined.
    Raises: ValueError for what does not fit, such as a box that is not within its image.
    """
    count = len(images.addresses)
    if tuple(out.shape) != (count, *views.size, 3) or not out.is_contiguous() or str(out.dtype) != "torch.uint8":
        raise ValueError(f"out: {out.dtype} {tuple(out.shape)}: expected uint8, contiguous, {(count, *views.size, 3)}")
    library = library_or_none()
    statuses = np.full(count, NOT_HANDLED, np.int32)
    if library is not None:
        run(library, images, views, out.data_ptr(), statuses)
    refused = {}
    for row in np.flatnonzero(statuses):
        status = int(statuses[row])
        if status == NOT_HANDLED:
            reason = decode_by_pillow(library, images, views, int(row), out)
        else:
            reason = refusal(images, views, int(row), status)
        if reason:
            refused[int(row)] = reason
    return refused


def run(library: ctypes.CDLL, images: Images, views: Views, out: int, statuses: NDArray[np.int32]) -> None:
    """Calls the decoder of jpeg_native/ once for all images; `out` is an address."""
    table = np.concatenate([views.boxes, views.resized, views.windows], axis=1)
    arrays: list[NDArray[Any]] = [
        np.ascontiguousarray(images.addresses, np.uint64),
        np.ascontiguousarray(images.lengths, np.int64),
        np.ascontiguousarray(images.raw, np.uint8),
        np.stack([images.heights, images.widths], axis=1).astype(np.int64),
        np.ascontiguousarray(table, np.int64),
        np.ascontiguousarray(views.flips, np.uint8),
    ]
    library.en_jpeg_decode(
        len(statuses), *(array.ctypes.data for array in arrays), *views.size, out, statuses.ctypes.data
    )


def refusal(images: Images, views: Views, row: int, status: int) -> str:
    """Says what is wrong with an image.

    Raises: ValueError for a box that is not within it; MemoryError, which is no fault of the image.
    """
    expected = int(images.heights[row]), int(images.widths[row])
    if status == NO_MEMORY:
        raise MemoryError(f"no memory for the pixels of an image of {expected[0]} x {expected[1]}")
    if status == BAD_BOX:
        box = ", ".join(map(str, views.boxes[row]))
        raise ValueError(f"box {box}: expected top, left, height, width within {expected[0]} x {expected[1]} pixels")
    if status == OTHER_SIZE:
        found = header(ctypes.string_at(int(images.addresses[row]), int(images.lengths[row])))
        return f"a JPEG of {found[0]} x {found[1]} pixels: expected {expected[0]} x {expected[1]}"
    return DAMAGE[status]


def header(content: bytes) -> tuple[int, int, int]:
    """Reads height and width, pixels, and the restart interval, MCUs, of a JPEG file; zeros where it has none."""
    found = (ctypes.c_int64 * 3)()
    library = library_or_none()
    if library is not None:
        library.en_jpeg_header(content, len(content), found)
    return found[0], found[1], found[2]


def transcode(content: bytes, interval: int = RESTART_INTERVAL) -> bytes | None:
    """Writes a JPEG file anew with a restart marker every `interval` MCUs (0: every row of them), without loss.

    The Huffman tables are optimized, all else before the scan is kept. That the coefficients are the same is checked.

    Returns: the file; None for one that is not handled here, and without a compiler, and for a progressive one, of
        which all codes are read to judge it.
    Raises: ValueError for a damaged file, with what is wrong.
    """
    library = library_or_none()
    if library is None:
        return None
    capacity, written = len(content) + len(content) // 8 + 4096, ctypes.c_int64()
    while True:
        buffer = np.empty(capacity, np.uint8)
        address = buffer.ctypes.data
        status = library.en_jpeg_transcode(content, len(content), interval, address, capacity, ctypes.byref(written))
        if status != NO_ROOM:
            break
        capacity = written.value
    if status == NO_MEMORY:
        raise MemoryError("no memory to transcode an image")
    if status in DAMAGE:
        raise ValueError(DAMAGE[status])
    return buffer[: written.value].tobytes() if status == DONE else None


@functools.cache
def library_or_none() -> ctypes.CDLL | None:
    """The compiled decoder, or a warning."""
    try:
        library = compiled_library(SOURCE, "en_jpeg_decode", ALONE)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error).splitlines()
        reason = next((line for line in said if "error" in line), *said[:1] or ["no word"])
        warn(f"Pillow decodes JPEG files, which is slower: {reason}")
        return None
    address, integer = ctypes.c_void_p, ctypes.c_int64
    library.en_jpeg_decode.argtypes = [integer, *[address] * 6, integer, integer, address, address]
    library.en_jpeg_decode.restype = None
    library.en_jpeg_header.argtypes = [ctypes.c_char_p, integer, address]
    library.en_jpeg_transcode.argtypes = [ctypes.c_char_p, integer, integer, address, integer, address]
    return library


def decoded_by() -> dict[str, str | None]:
    """Names what these pixels depend on, with versions: others decode the files that are not handled here."""
    return {"resampling": RESAMPLING} | decoders()


# ---- by Pillow ----


def decode_by_pillow(library: ctypes.CDLL | None, images: Images, views: Views, row: int, out: Tensor) -> str:
    """Decodes one row of the batch, and resizes it by the library where there is one; says what is wrong, or nothing.

    The library makes the window of the resized image alone.
    """
    expected = int(images.heights[row]), int(images.widths[row])
    content = ctypes.string_at(int(images.addresses[row]), int(images.lengths[row]))
    reason = ""
    try:
        if images.raw[row]:
            image = Image.fromarray(
                np.frombuffer(content, np.uint8)[: 3 * expected[0] * expected[1]].reshape(*expected, 3)
            )
        else:
            picture = decode_file(content)
            image, reason = picture.image, picture.warning
    except Exception as error:  # Pillow raises many kinds of error for damaged files
        return str(refusal_of(content, error))
    if reason:
        return reason
    if (image.height, image.width) != expected:
        return f"an image of {image.height} x {image.width} pixels: expected {expected[0]} x {expected[1]}"
    if library is not None:
        whole, statuses = np.ascontiguousarray(image), np.zeros(1, np.int32)
        one = slice(row, row + 1)
        view = Views(views.boxes[one], views.resized[one], views.windows[one], views.flips[one], views.size)
        run(library, of_pixels(whole), view, out[row].data_ptr(), statuses)
        return refusal(of_pixels(whole), view, 0, int(statuses[0])) if statuses[0] else ""
    box, resized, window = (array[row].tolist() for array in (views.boxes, views.resized, views.windows))
    pixels = np.asarray(show(image, box, resized, window, views.size))
    out.numpy()[row] = pixels[:, ::-1] if views.flips[row] else pixels
    return ""


def show(
    image: Image.Image, box: list[int], resized: list[int], window: list[int], size: tuple[int, int]
) -> Image.Image:
    """Cuts the box out, resizes it, and cuts the window out (see Views). Raises: ValueError for a box outside."""
    (top, left, height, width), (scaled_height, scaled_width) = box, resized
    if top < 0 or left < 0 or min(height, width) < 1 or top + height > image.height or left + width > image.width:
        raise ValueError(f"box {box}: expected top, left, height, width within {image.height} x {image.width} pixels")
    image = image.crop((left, top, left + width, top + height))
    # Pillow 13's order of passes by name: a pass that changes nothing is left out by every Pillow.
    vertical_first = 0 < height - scaled_height > 2 * (width - scaled_width)
    between = (width, scaled_height) if vertical_first else (scaled_width, height)
    for target in (between, (scaled_width, scaled_height)):
        image = image.resize(target, Image.Resampling.BILINEAR)
    return image.crop((window[1], window[0], window[1] + size[1], window[0] + size[0]))
