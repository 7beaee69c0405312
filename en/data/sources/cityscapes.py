"""Cityscapes' fine annotations of 19 classes, as unpacked.

Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016. Values, classes and colours
are those of labels.py in cityscapesScripts.
"""

from pathlib import Path

from en.data.palette import Colour
from en.data.sources.pairs import paired
from en.data.sources.source import SPLITS, Source
from en.data.targets import ClassMap
from en.data.views import IGNORE

IMAGES, MASKS = "leftImg8bit", "gtFine"
CLASSES: dict[str, tuple[int, Colour]] = {  # by name: the value in labelIds files, and the colour
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
IGNORED = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)  # unlabelled, ego vehicle, ..., caravan, trailer


def is_cityscapes(root: Path) -> bool:
    return (root / IMAGES).is_dir() and (root / MASKS).is_dir()


def read_cityscapes(root: Path) -> Source:
    """Reads leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and gtFine/{train,val}/CITY/*_gtFine_labelIds.png.

    Values become classes in memory, so that labelTrainIds files, which the download has not, are not needed.

    Raises: UserError.
    """
    values = {value: number for number, (value, _) in enumerate(CLASSES.values())} | dict.fromkeys(IGNORED, IGNORE)
    ends = f"_{IMAGES}.png", f"_{MASKS}_labelIds.png"
    splits = {split: paired(root / IMAGES / split, root / MASKS / split, *ends) for split in SPLITS}
    palette = [colour for _, colour in CLASSES.values()]
    return Source("Cityscapes", list(CLASSES), splits, ClassMap(values, None), palette)
