"""CamVid in the form that SegNet's authors gave it: 11 classes, 367 and 101 images.

Brostow et al., "Semantic object classes in video", Pattern Recognition Letters 2009; Badrinarayanan et al., "SegNet",
PAMI 2017. Their 233 images for testing are not read.
"""

from pathlib import Path

from en.data.palette import Colour
from en.data.sources.pairs import paired
from en.data.sources.source import SPLITS, Source
from en.data.targets import ClassMap
from en.data.views import IGNORE

CLASSES: dict[str, Colour] = {  # in the order of their values
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
VOID = (11, IGNORE)  # SegNet's, and that of other copies


def is_camvid(root: Path) -> bool:
    return (root / "train").is_dir() and (root / "trainannot").is_dir()


def read_camvid(root: Path) -> Source:
    """Reads {train,val}/*.png and {train,val}annot/*.png, masks of the values 0 to 10 and, for void, 11 or 255.

    Raises: UserError.
    """
    values = {number: number for number in range(len(CLASSES))} | dict.fromkeys(VOID, IGNORE)
    splits = {split: paired(root / split, root / f"{split}annot") for split in SPLITS}
    return Source("CamVid", list(CLASSES), splits, ClassMap(values, None), list(CLASSES.values()))
