"""ADE20K's SceneParsing set of 150 classes (ADEChallengeData2016), as unpacked.

Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017.
"""

from pathlib import Path

from en.data.sources.pairs import paired
from en.data.sources.source import Source
from en.data.targets import ClassMap
from en.data.views import IGNORE
from en.errors import UserError
from en.text_file import read_text

FOLDER, NAMES, CLASSES = "ADEChallengeData2016", "objectInfo150.txt", 150
SPLITS = {"train": "training", "val": "validation"}


def is_ade20k(path: Path) -> bool:
    return any((root / "annotations" / "training").is_dir() for root in (path, path / FOLDER))


def read_ade20k(path: Path) -> Source:
    """Reads {images,annotations}/{training,validation}/ADE_*, in the folder or in its ADEChallengeData2016.

    Class c is value c + 1 of the masks; 0, other objects, does not count. Names are those of objectInfo150.txt.

    Raises: UserError.
    """
    root = path if (path / "annotations").is_dir() else path / FOLDER
    values = {0: IGNORE} | {value: value - 1 for value in range(1, CLASSES + 1)}
    splits = {split: paired(root / "images" / name, root / "annotations" / name) for split, name in SPLITS.items()}
    return Source("ADE20K SceneParsing", read_names(root / NAMES), splits, ClassMap(values, None))


def read_names(path: Path) -> list[str]:
    """Reads the classes' names: fields between tabs, the value first and the name, with its synonyms, last."""
    lines = read_text(path, "the list of ADE20K's classes").splitlines()
    rows = [line.split("\t") for line in lines[1:] if line.strip()]
    if [row[0].strip() for row in rows] != [str(value) for value in range(1, CLASSES + 1)]:
        raise UserError(f"{path}: expected a heading and lines for the values 1 to {CLASSES}, between tabs")
    return [row[-1].strip() for row in rows]
