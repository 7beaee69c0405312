#!/usr/bin/env bash
# A mask's class numbers depend on the lossless format that they are stored in, and on who reads it.
#
# Pillow 13.0.0 spreads the numbers of a PGM file over 0 to 255 by the largest value that its header names (5 of at most
# 10 becomes 128, 1 of at most 1 becomes 255), where OpenCV 5.0.0 reads them as they are; it spreads TIFFs of 4 bits (5
# becomes 85), which OpenCV refuses; both invert TIFFs whose zero is white. All but the refusal without a word. Seen: the
# table that this prints.
# Affects those who train on masks: a class becomes another, or "ignore" (255). en reads PNG, and TIFF of 16 or 32 bits alone,
# and names others (en/data/targets.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check pillow==13.0.0 opencv-python-headless==5.0.0.93 numpy==2.4.6
"$work/venv/bin/python" - "$work" <<'P'
import struct
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

folder = Path(sys.argv[1])
LABELS = [0, 1, 5]


def pgm(name, largest, labels):
    path = folder / name
    path.write_bytes(b"P5\n%d 1\n%d\n" % (len(labels), largest) + bytes(labels))
    return path, labels


def tiff(name, bits, white_is_zero):
    """One row of numbers of so many bits, uncompressed: TIFF 6.0, section 4."""
    packed = bytes(LABELS) if bits == 8 else bytes([LABELS[0] << 4 | LABELS[1], LABELS[2] << 4])
    tags = [(256, len(LABELS)), (257, 1), (258, bits), (259, 1), (262, 0 if white_is_zero else 1)]
    tags += [(273, 8), (277, 1), (278, 1), (279, len(packed))]
    start = 8 + len(packed) + len(packed) % 2
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    body = packed.ljust(start - 8, b"\0") + struct.pack("<H", len(tags)) + entries + b"\0" * 4
    path = folder / name
    path.write_bytes(b"II*\0" + struct.pack("<I", start) + body)
    return path, LABELS


Image.fromarray(np.array([LABELS], np.uint8)).save(folder / "8bit.png")
files = {
    "PNG, 8 bits": (folder / "8bit.png", LABELS),
    "TIFF, 8 bits": tiff("a.tif", 8, False),
    "TIFF, 8 bits, white is 0": tiff("b.tif", 8, True),
    "TIFF, 4 bits": tiff("c.tif", 4, False),
    "PGM, largest value 255": pgm("a.pgm", 255, LABELS),
    "PGM, largest value 10": pgm("b.pgm", 10, LABELS),
    "PGM, largest value 1": pgm("c.pgm", 1, [0, 1, 1]),
}
found = {}
for name, (path, labels) in files.items():
    by_opencv = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    by_opencv = None if by_opencv is None else by_opencv.reshape(-1)[:3].tolist()
    found[name] = (np.asarray(Image.open(path)).ravel().tolist(), by_opencv)
    print(f"{name:26} holds {labels}: Pillow {found[name][0]}, OpenCV {found[name][1]}")
sys.exit(found != {
    "PNG, 8 bits": (LABELS, LABELS),
    "TIFF, 8 bits": (LABELS, LABELS),
    "TIFF, 8 bits, white is 0": ([255, 254, 250], [255, 254, 250]),
    "TIFF, 4 bits": ([0, 17, 85], None),
    "PGM, largest value 255": (LABELS, LABELS),
    "PGM, largest value 10": ([0, 26, 128], LABELS),
    "PGM, largest value 1": ([0, 255, 255], [0, 1, 1]),
})
P
echo "as described: pillow 13.0.0, opencv 5.0.0.93"
