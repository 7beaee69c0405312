"""Small sets of images and masks in the layouts of published ones, and PNG files that Pillow does not write."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from en.data.sources.ade20k import CLASSES as ADE20K_CLASSES

RANDOM = np.random.default_rng(0)
GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6  # colour types of PNG


def png(values: np.ndarray, bits: int, kind: int = GREY) -> bytes:
    """A PNG of (H, W) or (H, W, channels) values of so many bits, written by the letter of its specification."""
    height, width = values.shape[:2]
    rows = []
    for row in values.reshape(height, -1):
        if bits == 16:
            packed = row.astype(">u2").tobytes()
        else:
            spread = (row[:, None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8)
            packed = np.packbits(spread.ravel()).tobytes()
        rows.append(b"\0" + packed)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))]
    parts += [(b"PLTE", RANDOM.integers(0, 256, 3 << bits, np.uint8).tobytes())] if kind == PALETTE else []
    parts += [(b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def write_pair(image: Path, mask: Path, values: np.ndarray, content: bytes = b"") -> None:
    """Writes an image of noise of the values' size, and its mask: of these values, or with a content."""
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RANDOM.integers(0, 256, (*values.shape, 3), np.uint8)
    Image.fromarray(pixels).save(image, **({"quality": 95} if image.suffix == ".jpg" else {}))
    mask.write_bytes(content or png(values, 8))


def spread(values: list[int], height: int = 24, width: int = 33) -> np.ndarray:
    """A mask that holds each of the values."""
    return np.resize(np.array(values, np.uint8), (height, width))


def write_ade20k(root: Path) -> Path:
    base = root / "ADEChallengeData2016"
    for split, short in (("training", "train"), ("validation", "val")):
        for number in range(1, 3):
            name = f"ADE_{short}_{number:08}"
            values = spread(list(range(ADE20K_CLASSES + 1)), 20 + number, 30)
            write_pair(base / "images" / split / f"{name}.jpg", base / "annotations" / split / f"{name}.png", values)
    rows = [f"{value} \t0.1\t9\t9\tname {value}, synonym {value} " for value in range(1, ADE20K_CLASSES + 1)]
    (base / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")
    (base / "sceneCategories.txt").write_text("ADE_train_00000001 airport\n")
    return root


def write_cityscapes(root: Path) -> Path:
    for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "ulm")):
        for number in range(2):
            name = f"{city}_000000_{number:06}"
            image = root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
            base = root / "gtFine" / split / city
            write_pair(image, base / f"{name}_gtFine_labelIds.png", spread(list(range(34))))
            (base / f"{name}_gtFine_color.png").write_bytes(png(np.zeros((24, 33, 4), np.uint8), 8, COLOUR_ALPHA))
            (base / f"{name}_gtFine_instanceIds.png").write_bytes(png(np.full((24, 33), 26001), 16))
            (base / f"{name}_gtFine_polygons.json").write_text("{}")
    return root


def write_camvid(root: Path, void: int = 11) -> Path:
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for number in range(count):
            name = f"0001TP_{number:06}.png"
            write_pair(root / split / name, root / f"{split}annot" / name, spread([*range(11), void], 20, 28))
    return root


def write_voc2012(root: Path) -> Path:
    base = root / "VOCdevkit" / "VOC2012"
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, numbers in (("train", (3, 1)), ("val", (2,))):
        names = [f"2007_{number:06}" for number in numbers]
        for name in names:
            values = spread([*range(21), 255], 25, 32)
            content = png(values, 8, PALETTE)
            write_pair(base / "JPEGImages" / f"{name}.jpg", base / "SegmentationClass" / f"{name}.png", values, content)
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    write_pair(base / "JPEGImages" / "2008_000001.jpg", root / "unused.png", values)  # of another task of VOC
    return root


def write_nuclei(root: Path, table: str = "0 ground\n255 nucleus\n128 ignore\n") -> Path:
    """Pairs of folders with a table, images as PNG or JPEG, in folders inside."""
    for split in ("train", "val"):
        for number, end in enumerate(("png", "jpg", "png")):
            name = f"slide {number}/cell.{number}"
            values = spread([0, 255, 255, 0, 128], 22 + number, 31)
            write_pair(root / "images" / split / f"{name}.{end}", root / "masks" / split / f"{name}.png", values)
    (root / "classes.txt").write_text(table)
    return root


WRITERS = {
    "ade20k": write_ade20k,
    "cityscapes": write_cityscapes,
    "camvid": write_camvid,
    "voc2012": write_voc2012,
    "pairs": write_nuclei,
}
