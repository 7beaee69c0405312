"""PASCAL VOC 2012's segmentation of 21 classes, as unpacked.

Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective", IJCV 2015.
"""

from pathlib import Path

from en.data.palette import varied
from en.data.sources.source import SPLITS, Sample, Source, as_text, name_of
from en.data.targets import ClassMap
from en.data.views import IGNORE
from en.errors import UserError, listed, warn
from en.text_file import MOST_OF_LIST, read_text

FOLDER = Path("VOCdevkit", "VOC2012")
IMAGES, MASKS, LISTS = "JPEGImages", "SegmentationClass", Path("ImageSets", "Segmentation")
CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip


def root_of(path: Path) -> Path | None:
    """The folder VOC2012 at a path, above which its archive's folders may be; None where there is none."""
    places = (path, path / FOLDER.name, path / FOLDER)
    return next((place for place in places if (place / MASKS).is_dir() and (place / LISTS).is_dir()), None)


def is_voc2012(path: Path) -> bool:
    return root_of(path) is not None


def read_voc2012(path: Path) -> Source:
    """Reads JPEGImages/NAME.jpg and SegmentationClass/NAME.png, palette files, by ImageSets/Segmentation/SPLIT.txt.

    0, the background, is a class; 255, the objects' borders, does not count. Warns of masks that neither list names.

    Raises: UserError.
    """
    root = root_of(path)
    assert root is not None
    splits = {split: read_split(root, split) for split in SPLITS}
    named = {sample.target for samples in splits.values() for sample in samples}
    others = sorted(as_text(mask.name) for mask in set((root / MASKS).glob("*.png")) - named)
    if others:
        warn(f"{root / MASKS}: {len(others)} masks that no list of {root / LISTS} names: {listed(others, 3)}")
    values = {number: number for number in range(len(CLASSES))} | {IGNORE: IGNORE}
    return Source("PASCAL VOC 2012", CLASSES, splits, ClassMap(values, None), varied(len(CLASSES)))


def read_split(root: Path, split: str) -> list[Sample]:
    """The samples that a list names, in its order. Raises: UserError that lists the files that are not there."""
    path = root / LISTS / f"{split}.txt"
    names = read_text(path, "a list of names, one a line", MOST_OF_LIST).split()
    samples = [(root / IMAGES / f"{name}.jpg", root / MASKS / f"{name}.png") for name in names]
    missing = [as_text(str(file)) for pair in samples for file in pair if not file.is_file()]
    if missing or not names:
        raise UserError(f"{path}: {len(missing)} files of {len(names)} names are not there", *missing)
    return [Sample(name_of(image, root / IMAGES), image, mask) for image, mask in samples]
