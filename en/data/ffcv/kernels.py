"""FFCV's C library: the libjpeg-turbo that it is linked with, and OpenCV's area resize, called without the GIL.

The compiled library is loaded without importing the package ffcv, whose import compiles numba functions for three
seconds in every process; none of them is needed here. Its own `imdecode` is not called: it takes libjpeg's fast DCT,
which rounds Y, Cb and Cr down, so that red and blue lack more than 1 of 255 in the mean; and it keeps libjpeg's tables
from file to file, so that one that lacks its own is decoded with another's.

Raises: ImportError at import if ffcv is not installed.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes import CDLL, POINTER, Structure, byref, c_char_p, c_int, c_int64, c_ulong, c_void_p, cast
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def load_library() -> CDLL:
    """Loads the package's compiled library. Raises ImportError."""
    package = find_spec("ffcv")
    folders = (package and package.submodule_search_locations) or []
    libraries = [path for folder in folders for path in Path(folder).glob("_libffcv*.so")]
    if not libraries:
        raise ModuleNotFoundError("no compiled ffcv is installed", name="ffcv")
    try:
        return CDLL(str(libraries[0]))
    except OSError as error:
        raise ImportError(f"ffcv's library does not load: {error}") from error


LIBRARY = load_library()
LIBRARY.resize.argtypes = [c_int64] * 11
LIBRARY.resize.restype = None
# of libjpeg-turbo, with which the library is linked
LIBRARY.tjInitDecompress.argtypes = []
LIBRARY.tjInitDecompress.restype = c_void_p
LIBRARY.tjDecompressHeader3.argtypes = [c_void_p, c_void_p, c_ulong, *[POINTER(c_int)] * 4]
LIBRARY.tjDecompressHeader3.restype = c_int
LIBRARY.tjDecompress2.argtypes = [c_void_p, c_void_p, c_ulong, c_void_p, *[c_int] * 5]
LIBRARY.tjDecompress2.restype = c_int
LIBRARY.tjGetErrorStr2.argtypes, LIBRARY.tjGetErrorStr2.restype = [c_void_p], c_char_p
LIBRARY.tjGetErrorCode.argtypes, LIBRARY.tjGetErrorCode.restype = [c_void_p], c_int
LIBRARY.tjDestroy.argtypes = [c_void_p]
TJ_RGB, TJ_CMYK = 0, 11  # libjpeg-turbo's pixel formats
TJ_FATAL = 1  # TJERR_FATAL, in contrast to a warning
TJ_ACCURATE_DCT = 4096  # TJFLAG_ACCURATEDCT: Pillow's DCT, and torchvision's and OpenCV's
LIBJPEG_TURBO = re.compile(rb"libjpeg-turbo version ([0-9.]+)")
OPENCV_VERSION = ("_ZN2cv15getVersionMajorEv", "_ZN2cv15getVersionMinorEv", "_ZN2cv18getVersionRevisionEv")  # functions


def jpeg_size(address: int, size: int) -> tuple[int, int] | None:
    """Height and width, pixels, in the header of the JPEG file of `size` bytes at an address; None if it is damaged."""
    width, height, subsampling, colours = (c_int(0) for _ in range(4))
    # The return code is useless: it also rejects an unusual subsampling that the decoder accepts.
    found = [byref(value) for value in (width, height, subsampling, colours)]
    with decompressor() as handle:
        LIBRARY.tjDecompressHeader3(handle, address, size, *found)
    return (height.value, width.value) if min(height.value, width.value) > 0 else None


def decode_jpeg(address: int, size: int, height: int, width: int, out: Bytes) -> int:
    """Decodes the JPEG file of `size` bytes at an address as RGB into `out`, at least 3 * height * width bytes.

    The DCT is the exact one, which gives Pillow's pixels.

    Returns: 0 if libjpeg reported neither an error nor a warning.
    """
    with decompressor() as handle:
        return decompress(handle, address, size, out, height, width, TJ_RGB)


class Decoded(NamedTuple):
    """Holds what libjpeg makes of a JPEG file.

    Attributes:
        pixels: (H, W, 3) RGB, or (H, W, 4) of a file with four channels, which are left as they are.
        complaint: libjpeg's error or first warning; empty if there was none.
        is_error: it gave the file up, because it is damaged or of a kind that it does not know.
    """

    pixels: Bytes
    complaint: str = ""
    is_error: bool = False


def read_jpeg(content: bytes, height: int, width: int, cmyk: bool = False) -> Decoded:
    """Decodes a JPEG file as `decode_jpeg` does, and says what libjpeg says.

    Args:
        cmyk: the file has four channels.
    """
    pixels = np.zeros((height, width, 4 if cmyk else 3), np.uint8)
    with decompressor() as handle:
        if not decompress(handle, content, len(content), pixels, height, width, TJ_CMYK if cmyk else TJ_RGB):
            return Decoded(pixels)
        complaint = (LIBRARY.tjGetErrorStr2(handle) or b"not decodable").decode("ascii", "replace")
        return Decoded(pixels, complaint, LIBRARY.tjGetErrorCode(handle) == TJ_FATAL)


@contextmanager
def decompressor() -> Iterator[int]:
    """Opens libjpeg's state for one file.

    Kept for more, it would lend a file's tables to one that lacks its own, and stumble over the rest of a bad header.
    """
    handle = LIBRARY.tjInitDecompress()
    try:
        yield handle
    finally:
        LIBRARY.tjDestroy(handle)


def decompress(
    handle: int, content: bytes | int, size: int, out: Bytes, height: int, width: int, pixel_format: int
) -> int:
    """Decodes the JPEG file of `size` bytes, or at an address, into `out`; 0 without an error or warning."""
    layout = (width, 0, height, pixel_format, TJ_ACCURATE_DCT)
    code: int = LIBRARY.tjDecompress2(handle, content, size, out.ctypes.data, *layout)
    return code


def scale(address: int, height: int, width: int, box: tuple[int, int, int, int], out: Bytes) -> None:
    """Scales a part of the RGB image at an address into `out`, (H, W, 3) contiguous, with OpenCV's INTER_AREA.

    Args:
        box: top, left, height, width of the part, pixels.
    """
    top, left, box_height, box_width = box
    bottom, right = top + box_height, left + box_width
    LIBRARY.resize(0, address, height, width, top, bottom, left, right, out.ctypes.data, out.shape[0], out.shape[1])


class SymbolInfo(Structure):
    """Where a function lies: Dl_info of dlfcn.h."""

    _fields_ = [("file", c_char_p), ("base", c_void_p), ("name", c_char_p), ("address", c_void_p)]


@cache
def libjpeg_version() -> str | None:
    """Reads the version of libjpeg-turbo out of its file, because it has no function that tells it; None: not found."""
    info, file = SymbolInfo(), None
    with suppress(AttributeError, OSError):  # a system without dladdr, a file that has gone
        CDLL(None).dladdr(cast(LIBRARY.tjInitDecompress, c_void_p), byref(info))
        file = Path(os.fsdecode(info.file or b"")).read_bytes()
    found = LIBJPEG_TURBO.search(file or b"")
    return found[1].decode() if found else None


def opencv_version() -> str | None:
    """Asks OpenCV for its version; None where it does not tell."""
    try:
        return ".".join(str(getattr(LIBRARY, name)()) for name in OPENCV_VERSION)
    except AttributeError:
        return None
