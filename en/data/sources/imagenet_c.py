"""ImageNet-C: corruption/severity/WNID/*.JPEG, stored at 224 x 224 pixels as they are to be shown.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from en.data.sources.compact import Compact
from en.data.sources.folders import folder_samples, is_hidden
from en.data.sources.source import TEST, Source, as_text
from en.data.sources.wordnet import wordnet_folders
from en.errors import UserError, listed, warn

SEVERITIES = tuple("12345")
MAIN = (  # those of mCE
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
CORRUPTIONS = MAIN + EXTRA


def is_imagenet_c(root: Path) -> bool:
    return bool(places_in(root))


def places_in(root: Path) -> dict[str, Path]:
    """The folders CORRUPTION/SEVERITY that are there, by these names; the root may be one of a corruption, or of both.

    Taken for folders of classes like any other, a part would have its centre cut out.
    """
    here = root.resolve()
    if here.name in SEVERITIES and here.parent.name in CORRUPTIONS:
        return {f"{here.parent.name}/{here.name}": root}
    kinds = {here.name: root} if here.name in CORRUPTIONS else {name: root / name for name in CORRUPTIONS}
    places = {f"{name}/{level}": folder / level for name, folder in kinds.items() for level in SEVERITIES}
    return {name: place for name, place in places.items() if place.is_dir()}


def read_imagenet_c(root: Path) -> Source:
    """Reads root/CORRUPTION/SEVERITY/WNID/**, one split for testing, of the corruptions that are there; or a part.

    Samples are named CORRUPTION/SEVERITY/WNID/FILE, by which errors are told apart; no centre is cut out of them. Warns
    of folders that are left out, because they have other names.

    Raises: UserError, also where the images differ in number or class between corruptions and severities.
    """
    places = places_in(root)
    first_place = next(iter(places.values()))
    classes = list(wordnet_folders(first_place))
    samples = Compact()
    first: Counter[object] = Counter()
    for prefix, place in places.items():
        folders = wordnet_folders(place)
        if list(folders) != classes or not classes:
            raise UserError(f"{place}: expected the classes of {first_place}, folders named by WordNet ids")
        counts: Counter[object] = Counter()
        for sample in folder_samples(place, folders, classes):
            counts[sample.target] += 1
            samples.append(replace(sample, name=f"{prefix}/{sample.name}"))
        first = first or counts
        if counts != first or not counts:
            raise UserError(f"{place}: expected as many images of each class as {first_place} has")
    if root not in places.values():
        warn_of_others(root, places)
    return Source("ImageNet-C", classes, {TEST: samples}, cropped=True)


def warn_of_others(root: Path, places: Mapping[str, Path]) -> None:
    """Warns of folders beside those of corruptions and severities, which may be some under another name."""
    above = {root} | {place.parent for place in places.values()}
    known = above | {*places.values()}
    found = sorted(path for folder in above for path in folder.iterdir() if path.is_dir() and path not in known)
    if others := [as_text(str(path)) for path in found if not is_hidden(path)]:
        warn(f"{root}: left out, no corruption or severity: {listed(others, 3)}")
