"""Decodes as FFCV does, but with libjpeg's exact DCT: whole images, then OpenCV's area resize (data.decode=ffcv).

For comparisons. A crop that is smaller than the network's input is enlarged by that resize to blocks, and other crops
have other pixels than Pillow's.

Raises: ImportError at import if ffcv is not installed.
"""

import threading
from ctypes import string_at

import numpy as np
from torch import Tensor

from en.data.ffcv.kernels import Bytes, decode_jpeg, jpeg_size, libjpeg_version, opencv_version, read_jpeg, scale
from en.data.jpeg import Images, Views
from en.machine import package_version

LOCAL = threading.local()


def decode(images: Images, views: Views, out: Tensor) -> dict[int, str]:
    """Decodes what is shown of N images into `out`, image by image (see en.data.jpeg.decode)."""
    refused = {}
    for row, shown in enumerate(out.numpy()):
        address, size = int(images.addresses[row]), (int(images.heights[row]), int(images.widths[row]))
        if not images.raw[row]:
            pixels = scratch(3 * size[0] * size[1])
            if reason := decode_whole(address, int(images.lengths[row]), size, pixels):
                refused[row] = reason
                continue
            address = pixels.ctypes.data
        height, width = views.resized[row].tolist()
        resized = shown if (height, width) == views.size else np.empty((height, width, 3), np.uint8)
        top, left, box_height, box_width = views.boxes[row].tolist()
        scale(address, *size, (top, left, box_height, box_width), resized)
        top, left = views.windows[row].tolist()
        window = resized[top : top + views.size[0], left : left + views.size[1]]
        if views.flips[row]:
            shown[:] = window[:, ::-1].copy()
        elif resized is not shown:
            shown[:] = window
    return refused


def scratch(size: int) -> Bytes:
    """Memory of this thread, of `size` bytes or more. Raises MemoryError."""
    kept: Bytes | None = getattr(LOCAL, "scratch", None)
    if kept is None or kept.size < size:
        kept = LOCAL.scratch = np.empty(size, np.uint8)
    return kept


def decode_whole(address: int, length: int, expected: tuple[int, int], out: Bytes) -> str:
    """Decodes a JPEG file; says what is wrong with it. Checks its size first, since libjpeg would scale it."""
    found = jpeg_size(address, length)
    if found not in (None, expected):
        return f"a JPEG of {found[0]} x {found[1]} pixels: expected {expected[0]} x {expected[1]}"
    if found is None or decode_jpeg(address, length, *expected, out):
        return f"libjpeg could not decode it: {read_jpeg(string_at(address, length), *expected).complaint}"
    return ""


def made_by() -> dict[str, str | None]:
    """Names what decodes and resizes here, with versions."""
    return {"ffcv": package_version("ffcv"), "opencv": opencv_version(), "libjpeg_turbo": libjpeg_version()}
