"""JPEG files of many forms, damage to them, and what decoding finds wrong with them."""

import random
from collections.abc import Iterator

import numpy as np
from conftest import jpeg

from en.data.decoding import DamagedImage, decode_image


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
    except DamagedImage as error:
        return str(error)
