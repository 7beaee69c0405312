"""JPEG files of many forms, damage to them, and what decoding finds wrong with them."""

import os
import random
import struct
from collections.abc import Iterator
from ctypes import POINTER, byref, c_int, c_ulong, c_void_p, string_at

import numpy as np
from conftest import jpeg

from en.data.decoding import UnusableImage, decode_image
from en.data.ffcv.kernels import LIBRARY

FACTORS = {  # of libjpeg's names; the others are odd but upsampled
    "4:4:4": [(1, 1)] * 3,
    "4:2:2": [(2, 1), (1, 1), (1, 1)],
    "4:4:0": [(1, 2), (1, 1), (1, 1)],
    "4:2:0": [(2, 2), (1, 1), (1, 1)],
    "4:1:1": [(4, 1), (1, 1), (1, 1)],
    "4:1:0": [(4, 2), (1, 1), (1, 1)],
    "4:4:1": [(1, 4), (1, 1), (1, 1)],
    "tall and wide": [(2, 2), (2, 1), (1, 2)],
    "wide chroma": [(2, 1), (2, 2), (1, 1)],
    "subsampled luma": [(1, 1), (2, 2), (2, 1)],
    "thirds": [(3, 1), (1, 1), (3, 1)],
    "grey": [(2, 2)],
}


def whole_jpegs(seed: int, count: int) -> Iterator[bytes]:
    """JPEG files of noise and flat parts: baseline, optimized, progressive, with restarts, grey and CMYK."""
    rng = np.random.default_rng(seed)
    forms = [{}, {"optimize": True}, {"progressive": True}, {"restart_marker_blocks": 3}, {"restart_marker_rows": 1}]
    for number in range(count):
        height, width = rng.integers(24, 120, 2)
        coarse = rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        pixels = coarse.repeat(8, 0).repeat(8, 1)[:height, :width] // 2 + rng.integers(
            0, 128, (height, width, 3), dtype=np.uint8
        )
        mode = ("RGB", "RGB", "L", "CMYK")[number % 4]
        quality, sampling = int(rng.integers(40, 100)), int(rng.integers(0, 3)) if mode == "RGB" else -1
        yield jpeg(pixels, mode, quality=quality, subsampling=sampling, **forms[number % 5])


def damage(content: bytes, rng: random.Random) -> bytes:
    """The file with one thing wrong, mostly in its scan."""
    spoilt = bytearray(content)
    at = rng.randrange(2 if rng.random() < 0.1 else content.find(b"\xff\xda"), len(content) - 2)
    length = rng.choice([1, 1, 2, 4, 16, 64])
    length = min(length, len(content) - 2 - at)
    match rng.randrange(6):
        case 0:
            spoilt[at] ^= 1 << rng.randrange(8)
        case 1:
            spoilt[at : at + length] = bytes(length)
        case 2:
            spoilt[at : at + length] = rng.randbytes(length)
        case 3:
            del spoilt[at : at + length]
        case 4:
            spoilt[at:at] = rng.randbytes(length)
        case 5:
            del spoilt[at:]
    return bytes(spoilt)


def fault(content: bytes) -> str:
    try:
        return decode_image(content).warning
    except UnusableImage as error:
        return str(error)


def lossless(pixels: np.ndarray, bits: int = 8) -> bytes:
    """Encodes an (H, W, C) image as a lossless JPEG (process 14, predictor 1): by differences to the sample before."""
    height, width, channels = pixels.shape
    values, before = pixels.astype(int), np.empty(pixels.shape, int)
    before[:, 1:], before[1:, 0], before[0, 0] = values[:, :-1], values[:-1, 0], 1 << (bits - 1)
    scan = "".join(code(difference) for difference in (values - before).flatten().tolist())
    scan += "1" * (-len(scan) % 8)
    data = int(scan, 2).to_bytes(len(scan) // 8, "big").replace(b"\xff", b"\xff\0")
    components = [bytes([number + 1]) for number in range(channels)]
    adobe = b"Adobe\0\x64" + bytes(5)  # no colour transform
    frame = struct.pack(">BHHB", bits, height, width, channels) + b"".join(c + b"\x11\0" for c in components)
    table = bytes([0, 0, 0, 0, 0, LENGTHS, *bytes(11), *range(LENGTHS)])
    head = bytes([channels]) + b"".join(c + b"\0" for c in components) + b"\x01\0\0"
    parts = [(0xEE, adobe), (0xC3, frame), (0xC4, table), (0xDA, head)]
    return b"\xff\xd8" + b"".join(segment(*part) for part in parts) + data + b"\xff\xd9"


LENGTHS = 17  # of differences, 0 to 16 bits, each of which has a code of 5


def code(difference: int) -> str:
    """Codes a difference as T.81 does, by its length and its bits."""
    length = abs(difference).bit_length()
    value = difference if difference > 0 else difference + (1 << length) - 1
    return f"{length:05b}" + (f"{value:0{length}b}" if length else "")


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def arithmetic(pixels: np.ndarray, progressive: bool = False) -> bytes:
    """Encodes an (H, W, 3) image as an arithmetic-coded JPEG, which TurboJPEG does when its environment says so."""
    compress, free = LIBRARY.tjCompress2, LIBRARY.tjFree
    compress.argtypes = [c_void_p, c_void_p, *[c_int] * 4, POINTER(c_void_p), POINTER(c_ulong), *[c_int] * 3]
    LIBRARY.tjInitCompress.restype, free.argtypes = c_void_p, [c_void_p]
    handle, out, size = LIBRARY.tjInitCompress(), c_void_p(), c_ulong()
    pixels, (height, width, _) = np.ascontiguousarray(pixels), pixels.shape
    names = ("TJ_ARITHMETIC", "TJ_PROGRESSIVE")[: 1 + progressive]
    os.environ |= dict.fromkeys(names, "1")
    try:
        assert compress(handle, pixels.ctypes.data, width, 0, height, 0, byref(out), byref(size), 2, 90, 0) == 0
        return string_at(out, size.value)
    finally:
        for name in names:
            del os.environ[name]
        free(out)
        LIBRARY.tjDestroy(handle)


def reframed(content: bytes, marker: int = 0xC0, **fields: int) -> bytes:
    """Changes what the frame header of a baseline file says: its marker, bits, height or components."""
    at = content.find(b"\xff\xc0")
    changed, places = bytearray(content), {"bits": (4, 1), "height": (5, 2), "components": (9, 1)}
    changed[at + 1] = marker
    for name, value in fields.items():
        offset, size = places[name]
        changed[at + offset : at + offset + size] = value.to_bytes(size, "big")
    return bytes(changed)


def sampled(
    height: int,
    width: int,
    factors: list[tuple[int, int]],
    rng: np.random.Generator,
    interval: int = 0,
    ids: bytes = b"\1\2\3",
    quant: int = 4,
) -> bytes:
    """Encodes random coefficients at any sampling factors, (horizontal, vertical) of each component.

    The codes of both tables are those of 8 bits in the symbols' order, so that a symbol is its own code.
    """
    shown = factors if len(factors) > 1 else [(1, 1)]  # alone, a component's blocks are the MCUs
    across, down = -(-width // (8 * max(h for h, _ in shown))), -(-height // (8 * max(v for _, v in shown)))
    data, bits, before = b"", "", [0] * len(factors)
    for mcu in range(across * down):
        if interval and mcu and mcu % interval == 0:
            data, bits, before = data + packed(bits) + bytes([0xFF, 0xD0 + (mcu // interval - 1) % 8]), "", [0] * 3
        for number, (h, v) in enumerate(shown):
            for _ in range(h * v):
                value = int(rng.integers(-250, 250))
                bits, before[number] = bits + coded(0, value - before[number]), value
                for run in rng.integers(0, 20, int(rng.integers(0, 3))):
                    bits += f"{0xF0:08b}" * int(run > 15) + coded(
                        run % 16, int(rng.integers(1, 90) * rng.choice([-1, 1]))
                    )
                bits += f"{0:08b}"
    frame = struct.pack(">BHHB", 8, height, width, len(factors))
    frame += b"".join(bytes([ids[i], h << 4 | v, 0]) for i, (h, v) in enumerate(factors))
    symbols = bytes([*bytes(7), 255, *bytes(8), *range(255)])
    head = bytes([len(factors)]) + b"".join(bytes([ids[i], 0]) for i in range(len(factors))) + b"\0\x3f\0"
    tables = b"\0" + bytes([*bytes(7), 16, *bytes(8), *range(16)]) + b"\x10" + symbols
    parts = [(0xDB, bytes([0, *[quant] * 64])), (0xC1, frame), (0xC4, tables), (0xDD, struct.pack(">H", interval))]
    return b"\xff\xd8" + b"".join(segment(*part) for part in [*parts, (0xDA, head)]) + data + packed(bits) + b"\xff\xd9"


def coded(run: int, value: int) -> str:
    """A coefficient after a run of zeros, with the symbol as its own code of 8 bits."""
    length = abs(value).bit_length()
    return f"{run << 4 | length:08b}" + code(value)[5:]


def packed(bits: str) -> bytes:
    """Bits as a scan has them: ones fill the last byte, a zero byte follows each 0xFF."""
    bits += "1" * (-len(bits) % 8)
    return int(bits or "0", 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
