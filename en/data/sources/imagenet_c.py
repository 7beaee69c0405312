"""ImageNet-C: corruption/severity/WNID/*.JPEG, stored at 224 x 224 pixels as they are to be shown.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.
"""

from collections import Counter
from pathlib import Path

from en.data.sources.folders import folder_samples
from en.data.sources.source import TEST, Sample, Source
from en.data.sources.wordnet import wordnet_folders
from en.errors import UserError

SEVERITIES = tuple("12345")
MAIN = (  # those of mCE
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
CORRUPTIONS = MAIN + EXTRA


def is_imagenet_c(root: Path) -> bool:
    return any((root / name / severity).is_dir() for name in CORRUPTIONS for severity in SEVERITIES)


def read_imagenet_c(root: Path) -> Source:
    """Reads root/CORRUPTION/SEVERITY/WNID/**, one split for testing, of the corruptions that are there.

    Samples are named CORRUPTION/SEVERITY/WNID/FILE, by which errors are told apart; no centre is cut out of them.

    Raises: UserError, also where the images differ in number or class between corruptions and severities.
    """
    places = [root / name / severity for name in CORRUPTIONS for severity in SEVERITIES]
    places = [place for place in places if place.is_dir()]
    classes = list(wordnet_folders(places[0]))
    samples: list[Sample] = []
    first: Counter[object] = Counter()
    for place in places:
        folders = wordnet_folders(place)
        if list(folders) != classes or not classes:
            raise UserError(f"{place}: expected the classes of {places[0]}, folders named by WordNet ids")
        prefix = f"{place.parent.name}/{place.name}"
        own = [
            Sample(f"{prefix}/{sample.name}", sample.image, sample.target)
            for sample in folder_samples(place, folders, classes)
        ]
        counts: Counter[object] = Counter(sample.target for sample in own)
        first = first or counts
        if counts != first or not own:
            raise UserError(f"{place}: expected as many images of each class as {places[0]} has")
        samples += own
    return Source("ImageNet-C", classes, {TEST: samples}, cropped=True)
