"""Progressive JPEG files of any samplings and scans, written here: Pillow has one script of scans and few samplings."""

import struct
from collections.abc import Iterator

import numpy as np
from jpeg_files import code, packed, segment

Factors = list[tuple[int, int]]
Scan = tuple[tuple[int, ...], int, int, int, int]  # components, first and last coefficient, high and low bit

SCRIPTS: dict[str, list[Scan]] = {  # of three components; those of a grey image are the ones of component 0
    "spectral": [((0, 1, 2), 0, 0, 0, 0), *[((c,), a, b, 0, 0) for c in (2, 0, 1) for a, b in ((1, 5), (6, 63))]],
    "successive": [
        ((0, 1, 2), 0, 0, 0, 2),
        *[((c,), 1, 63, 0, 3) for c in range(3)],
        *[((c,), 1, 63, bit + 1, bit) for bit in (2, 1, 0) for c in range(3)],
        *[((0, 1, 2), 0, 0, bit + 1, bit) for bit in (1, 0)],
    ],
    "apart": [
        *[((c,), 0, 0, 0, 1) for c in range(3)],
        ((0,), 1, 1, 0, 1), ((0,), 2, 63, 0, 2), ((1,), 1, 63, 0, 0), ((0,), 2, 40, 2, 1), ((2,), 5, 9, 0, 0),
        *[((c,), 0, 0, 1, 0) for c in range(3)],
        ((0,), 1, 40, 1, 0), ((0,), 41, 63, 2, 1),
    ],
}  # fmt: skip


def progressive(
    height: int, width: int, factors: Factors, script: list[Scan], rng: np.random.Generator, interval: int = 0
) -> bytes:
    """Encodes random coefficients; each table's codes are those of 8 bits in the symbols' order, see `sampled`."""
    factors = factors if len(factors) > 1 else [(1, 1)]
    widest, tallest = max(h for h, _ in factors), max(v for _, v in factors)
    mcus = -(-height // (8 * tallest)), -(-width // (8 * widest))
    planes = [random_blocks(mcus[0] * v, mcus[1] * h, rng) for h, v in factors]
    frame = struct.pack(">BHHB", 8, height, width, len(factors))
    frame += b"".join(bytes([i + 1, h << 4 | v, 0]) for i, (h, v) in enumerate(factors))
    tables = b"\0" + bytes([*bytes(7), 16, *bytes(8), *range(16)])
    tables += b"\x10" + bytes([*bytes(7), 255, *bytes(8), *range(255)])
    parts = [(0xDB, bytes([0, *[4] * 64])), (0xC2, frame), (0xC4, tables), (0xDD, struct.pack(">H", interval))]
    file = b"\xff\xd8" + b"".join(segment(*part) for part in parts)
    for components, first, last, high, low in script:
        components = tuple(c for c in components if c < len(factors))
        if not components:
            continue
        if len(components) == 1:
            (c,) = components
            down, across = (-(-side * share // (8 * most)) for side, share, most in (
                (height, factors[c][1], tallest), (width, factors[c][0], widest)))  # fmt: skip
            units = [[(c, block)] for block in planes[c][:down, :across].reshape(-1, 64)]
        else:
            units = [
                [
                    (c, planes[c][y * factors[c][1] + v, x * factors[c][0] + h])
                    for c in components
                    for v in range(factors[c][1])
                    for h in range(factors[c][0])
                ]
                for y in range(mcus[0])
                for x in range(mcus[1])
            ]
        head = bytes(
            [len(components), *(byte for c in components for byte in (c + 1, 0)), first, last, high << 4 | low]
        )
        file += segment(0xDA, head)
        step = interval or len(units)
        for number, start in enumerate(range(0, len(units), step)):
            part = units[start : start + step]
            restart = bytes([0xFF, 0xD0 + (number - 1) % 8]) if number else b""
            if first == 0:
                bits = dc_bits(part, high, low)
            else:
                bits = "".join((refined if high else ac_bits)([block for ((_, block),) in part], first, last, low))
            file += restart + packed(bits)
    return file + b"\xff\xd9"


def random_blocks(down: int, across: int, rng: np.random.Generator) -> np.ndarray:
    """Coefficients in zigzag order, (down, across, 64): many blocks without AC, some with few, some with long runs."""
    blocks = np.zeros((down, across, 64), int)
    blocks[..., 0] = rng.integers(-250, 250, (down, across))
    shown = rng.random((down, across, 64)) < rng.choice([0, 0.03, 0.3, 0.9], (down, across, 1))
    values = rng.integers(1, 90, blocks.shape) >> rng.integers(0, 7, blocks.shape)
    blocks[..., 1:] = (values * rng.choice([-1, 1], blocks.shape) * shown)[..., 1:]
    return blocks


def dc_bits(units: list[list[tuple[int, np.ndarray]]], high: int, low: int) -> str:
    bits, before = "", [0] * 3
    for c, block in (one for unit in units for one in unit):
        value = int(block[0]) >> low
        if high:
            bits += str(value & 1)
        else:
            difference, before[c] = value - before[c], value
            bits += f"{abs(difference).bit_length():08b}" + code(difference)[5:]
    return bits


def end_of_blocks(count: int, corrections: str = "") -> str:
    """That `count` blocks have nothing more to send but the corrections."""
    if not count:
        return ""
    size = count.bit_length() - 1
    return f"{size << 4:08b}" + (f"{count - (1 << size):0{size}b}" if size else "") + corrections


def ac_bits(blocks: list[np.ndarray], first: int, last: int, low: int) -> Iterator[str]:
    """T.81, figure G.3."""
    ended = 0
    for block in blocks:
        run = 0
        for value in block[first : last + 1].tolist():
            value = (abs(value) >> low) * (1 if value > 0 else -1)
            if value == 0:
                run += 1
                continue
            yield end_of_blocks(ended) + f"{0xF0:08b}" * (run // 16)
            yield f"{run % 16 << 4 | abs(value).bit_length():08b}" + code(value)[5:]
            ended = run = 0
        ended += run > 0
    yield end_of_blocks(ended)


def refined(blocks: list[np.ndarray], first: int, last: int, low: int) -> Iterator[str]:
    """T.81, figure G.7."""
    ended, waiting = 0, ""
    for block in blocks:
        values = block[first : last + 1].tolist()
        sizes = [abs(value) >> low for value in values]
        fresh = max((k for k, size in enumerate(sizes) if size == 1), default=-1)
        run, corrections = 0, ""
        for k, size in enumerate(sizes):
            if size == 0:
                run += 1
                continue
            while run > 15 and k <= fresh:
                yield end_of_blocks(ended, waiting) + f"{0xF0:08b}" + corrections
                ended, waiting, corrections, run = 0, "", "", run - 16
            if size > 1:
                corrections += str(size & 1)
                continue
            yield end_of_blocks(ended, waiting) + f"{run << 4 | 1:08b}" + str(int(values[k] > 0)) + corrections
            ended, waiting, corrections, run = 0, "", "", 0
        if run or corrections:
            ended, waiting = ended + 1, waiting + corrections
    yield end_of_blocks(ended, waiting)
