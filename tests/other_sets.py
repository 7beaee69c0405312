"""Small sets in the exact layouts of published ones, which are not at hand: their names, lists and numbers."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from conftest import jpeg

from en.data.sources.wordnet import imagenet_classes

WNIDS = imagenet_classes()
MATCHED = "imagenetv2-matched-frequency-format-val"


def picture(path: Path, seed: int = 0, side: int = 40) -> None:
    """Writes a JPEG file of noise around a colour, the same one for each hundred of seeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = np.random.default_rng(seed // 100).integers(0, 200, 3)
    pixels = colour + np.random.default_rng(seed).integers(0, 55, (side, side, 3))
    path.write_bytes(jpeg(pixels.astype(np.uint8)))


def write_webvision(root: Path, train: Mapping[str, Mapping[str, int]], val: Mapping[str, int], classes: int) -> Path:
    """WebVision 1.0: images by engine and path with their labels, and those for validation.

    What belongs to no image on disk is in the lists all the same; see `lists_alone`.
    """
    (root / "info").mkdir(parents=True)
    (root / "info" / "synsets.txt").write_text("".join(f"{name} some, words\n" for name in WNIDS[:classes]))
    (root / "info" / "queries_synsets_map.txt").write_text("1 1\n")
    for engine, rows in train.items():
        lines = "".join(f"{path} {label}\n" for path, label in rows.items())
        (root / "info" / f"train_filelist_{engine}.txt").write_text(lines)
        for seed, path in enumerate(rows):
            picture(root / path, seed)
    (root / "info" / "val_filelist.txt").write_text("".join(f"{name} {label}\n" for name, label in val.items()))
    for seed, name in enumerate(val):
        picture(root / "val_images_256" / name, seed)
    (root / "val_images_resized.tar").touch()  # the archive, beside what it was unpacked to
    return root


def write_folders_of(root: Path, names: Iterable[object], per_class: int = 1, side: int = 40) -> Path:
    """Class folders without a split above them, as ImageNet-V2, -A, -R and Sketch have them."""
    for number, name in enumerate(names):
        for image in range(per_class):
            picture(root / str(name) / f"{image:02d}.jpeg", 100 * number + image, side)
    return root


def write_corrupted(root: Path, corruptions: Iterable[str], severities: Iterable[int], classes: Iterable[str]) -> Path:
    """ImageNet-C: one image a class, of 224 pixels, named as in ImageNet's validation set."""
    kinds = list(classes)
    for place, corruption in enumerate(corruptions):
        for severity in severities:
            for number, name in enumerate(kinds):
                file = f"ILSVRC2012_val_{number + 1:08d}.JPEG"
                picture(
                    root / corruption / str(severity) / name / file, 100 * (40 * place + 8 * severity + number), 224
                )
    return root


def write_cub(root: Path, rows: Mapping[int, tuple[str, int, int]], classes: Mapping[int, str]) -> Path:
    """CUB-200-2011: by an image's number its path, its class's number and whether it is for training."""
    root.mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{number} {name}\n" for number, name in classes.items()))
    for file, column in {"images": 0, "image_class_labels": 1, "train_test_split": 2}.items():
        order = reversed(rows) if column else iter(rows)  # joined by number, not by line
        (root / f"{file}.txt").write_text("".join(f"{number} {rows[number][column]}\n" for number in order))
    for number, (path, *_) in rows.items():
        picture(root / "images" / path, number)
    return root
