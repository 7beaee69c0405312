"""ImageNet-V2: folders 0 to 999, which are ImageNet's classes by number and not by the order of text.

Recht et al., "Do ImageNet Classifiers Generalize to ImageNet?", ICML 2019.
"""

import re
from pathlib import Path

from en.data.sources.folders import class_folders, folder_samples
from en.data.sources.source import ALL_SPLITS, TEST, Source, as_text
from en.data.sources.wordnet import imagenet_classes
from en.errors import UserError

FOLDER = re.compile(r"imagenetv2-?(.*?)(-format-val)?", re.IGNORECASE)  # imagenetv2-matched-frequency-format-val


def is_imagenet_v2(root: Path) -> bool:
    unsplit = root.is_dir() and not any((root / split).is_dir() for split in ALL_SPLITS)
    return unsplit and FOLDER.fullmatch(root.resolve().name) is not None


def read_imagenet_v2(root: Path) -> Source:
    """Reads root/NUMBER/**, one split for testing, with the WordNet id that ImageNet has under each number.

    Raises: UserError for folders of other names.
    """
    known, folders = imagenet_classes(), class_folders(root)
    for name in folders:
        if not re.fullmatch(r"0|[1-9][0-9]{0,2}", name):
            raise UserError(f"{as_text(str(root / name))}: expected ImageNet-V2's folders 0 to {len(known) - 1}")
    numbers = sorted(folders, key=int)
    variant = FOLDER.fullmatch(root.resolve().name)
    name = " ".join(["ImageNet-V2", *([as_text(variant[1])] if variant and variant[1] else [])])
    samples = list(folder_samples(root, folders, numbers))
    if not samples:
        raise UserError(f"{root}: expected image files in its class folders, found none")
    return Source(name, [known[int(number)] for number in numbers], {TEST: samples})
