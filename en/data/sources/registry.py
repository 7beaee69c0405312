"""The registry of the forms in which data sets come, and the first that reads a given one."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from en.data.sources.ade20k import is_ade20k, read_ade20k
from en.data.sources.camvid import is_camvid, read_camvid
from en.data.sources.cityscapes import is_cityscapes, read_cityscapes
from en.data.sources.cub import is_cub, read_cub
from en.data.sources.fashion_mnist import find_fashion_mnist, is_fashion_mnist, read_fashion_mnist
from en.data.sources.folders import read_folders
from en.data.sources.imagenet_c import is_imagenet_c, read_imagenet_c
from en.data.sources.imagenet_v2 import is_imagenet_v2, read_imagenet_v2
from en.data.sources.lists import read_list
from en.data.sources.pairs import is_pairs, read_pairs
from en.data.sources.source import Source, naming_unreadable
from en.data.sources.voc2012 import is_voc2012, read_voc2012
from en.data.sources.webvision import PARTS, is_webvision, read_webvision
from en.data.sources.wordnet import is_wordnet, read_wordnet
from en.errors import UserError

NAMED: dict[str, Callable[[], Source]] = {"fashion-mnist": lambda: read_fashion_mnist(find_fashion_mnist())}
PREFIXED: dict[str, Callable[[Path], Source]] = {  # PREFIX:PATH, where the path alone does not say what is wanted
    **{f"webvision-{part}": partial(read_webvision, part=part) for part in PARTS},
    "imagenet-v2": read_imagenet_v2,
}
FORMS: tuple[tuple[Callable[[Path], bool], Callable[[Path], Source]], ...] = (  # the first that matches reads
    (Path.is_file, read_list),
    (is_fashion_mnist, read_fashion_mnist),
    (is_ade20k, read_ade20k),
    (is_cityscapes, read_cityscapes),
    (is_camvid, read_camvid),
    (is_voc2012, read_voc2012),
    (is_pairs, read_pairs),
    (is_webvision, read_webvision),
    (is_cub, read_cub),
    (is_imagenet_v2, read_imagenet_v2),
    (is_imagenet_c, read_imagenet_c),
    (is_wordnet, read_wordnet),
    (Path.is_dir, read_folders),
)


def read_source(where: str) -> Source:
    """The data set at `where`.

    Args:
        where: a folder with train/CLASS/ and val/CLASS/ inside, or one of them, or test/CLASS/; a list file, each line
            `train|val|test path class`, paths relative to the file's folder; a folder with Fashion-MNIST's four .gz
            files; ADE20K, Cityscapes, CamVid or PASCAL VOC 2012 as unpacked; a folder with images/, masks/ and
            classes.txt; WebVision 1.0, CUB-200-2011, ImageNet-V2, -C, -A, -R or Sketch as unpacked; PREFIX:PATH, for
            a part of WebVision or ImageNet-V2 in a folder of another name; or the word fashion-mnist, for Debian's
            package dataset-fashion-mnist, else torchvision's download into the folder data/.
    Raises: UserError.
    """
    if where in NAMED:
        return NAMED[where]()
    prefix, _, path = where.partition(":")
    if path and prefix in PREFIXED:
        with naming_unreadable(Path(path)):
            return PREFIXED[prefix](Path(path))
    found = read_form(Path(where))
    if found is None:
        raise UserError(f"{where}: expected a folder of a form that is known, a list file, or fashion-mnist")
    return found


def read_form(path: Path) -> Source | None:
    """The data set in a file or folder, by the first form that matches; None where there is neither."""
    with naming_unreadable(path):
        return next((read(path) for matches, read in FORMS if matches(path)), None)
