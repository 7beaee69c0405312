"""The registry of the forms in which data sets come, and the first that reads a given one."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from en.data.sources.ade20k import is_ade20k, read_ade20k
from en.data.sources.camvid import is_camvid, read_camvid
from en.data.sources.cifar import is_cifar, read_cifar
from en.data.sources.cityscapes import is_cityscapes, read_cityscapes
from en.data.sources.compact import Compact
from en.data.sources.cub import is_cub, read_cub
from en.data.sources.fashion_mnist import find_fashion_mnist, is_fashion_mnist, read_fashion_mnist
from en.data.sources.flat_val import is_flat, is_folders, is_kaggle, read_flat_val, read_kaggle
from en.data.sources.folders import read_folders
from en.data.sources.ilsvrc2012 import is_ilsvrc2012, read_ilsvrc2012
from en.data.sources.imagenet_c import is_imagenet_c, read_imagenet_c
from en.data.sources.imagenet_v2 import is_imagenet_v2, read_imagenet_v2
from en.data.sources.lists import read_list
from en.data.sources.packed import holds_archives, is_archive, refuse_archive, refuse_archives
from en.data.sources.pairs import is_pairs, read_pairs
from en.data.sources.parquet import is_parquet, read_parquet
from en.data.sources.source import Source, naming_unreadable
from en.data.sources.tiny_imagenet import is_tiny_imagenet, read_tiny_imagenet
from en.data.sources.val_labels import NO_HINTS, Hints
from en.data.sources.voc2012 import is_voc2012, read_voc2012
from en.data.sources.webdataset import is_webdataset, read_webdataset
from en.data.sources.webvision import PARTS, is_webvision, read_webvision
from en.data.sources.wordnet import is_wordnet, read_wordnet
from en.errors import UserError, shown

NAMED: dict[str, Callable[[], Source]] = {"fashion-mnist": lambda: read_fashion_mnist(find_fashion_mnist())}
PREFIXED: dict[str, Callable[[Path], Source]] = {  # PREFIX:PATH, where the path alone does not say what is wanted
    **{f"webvision-{part}": partial(read_webvision, part=part) for part in PARTS},
    "imagenet-v2": read_imagenet_v2,
}
HINTED: dict[str, tuple[Callable[[Path], bool], Callable[[Path, Hints], Source]]] = {  # looked for before the others
    "folders": (is_folders, lambda path, hints: read_folders(path)),
    "ilsvrc2012": (is_ilsvrc2012, read_ilsvrc2012),
    "kaggle": (is_kaggle, read_kaggle),
    "parquet": (is_parquet, read_parquet),
    "webdataset": (is_webdataset, read_webdataset),
    "flat-val": (is_flat, read_flat_val),
}
BY_LISTS = ("ilsvrc2012", "kaggle", "flat-val")  # of these, those whose validation images' classes stand in a list
BY_NUMBERS = (*BY_LISTS, "parquet", "webdataset")  # those whose classes may be numbers
FORMS: tuple[tuple[Callable[[Path], bool], Callable[[Path], Source]], ...] = (  # the first that matches reads
    (is_cifar, read_cifar),
    (is_archive, refuse_archive),
    (Path.is_file, read_list),
    (is_tiny_imagenet, read_tiny_imagenet),
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
    (holds_archives, refuse_archives),
    (Path.is_dir, read_folders),
)


def read_source(where: str, hints: Hints = NO_HINTS) -> Source:
    """The data set at `where`.

    Args:
        where: a folder with train/CLASS/ and val/CLASS/ inside, or one of them, or test/CLASS/; a list file, each line
            `train|val|test path class`, paths relative to the file's folder; a folder with Fashion-MNIST's four .gz
            files; ADE20K, Cityscapes, CamVid or PASCAL VOC 2012 as unpacked; a folder with images/, masks/ and
            classes.txt; WebVision 1.0, CUB-200-2011, ImageNet-V2, -C, -A, -R or Sketch as unpacked; PREFIX:PATH, for
            a part of WebVision or ImageNet-V2 in a folder of another name; the word fashion-mnist, for Debian's
            package dataset-fashion-mnist, else torchvision's download into the folder data/; or ImageNet and its kin
            as they are downloaded: see docs/data.md.
        hints: what the files of ImageNet's forms leave open.
    Raises: UserError.
    """
    prefix, _, path = where.partition(":")
    prefixed = PREFIXED.get(prefix) if path else None
    forms = [] if where in NAMED or prefixed else forms_of(Path(where))
    if hints.form is None and len(forms) > 1:
        raise UserError(f"{where}: holds several forms of a data set: expected --form {' or '.join(forms)}")
    if hints.form is not None and hints.form not in forms:
        raise UserError(f"--form {hints.form}: {where} does not hold that, but {' or '.join(forms) or 'none of these'}")
    refuse_unread(where, hints, hints.form or "".join(forms))
    if where in NAMED:
        return NAMED[where]()
    if prefixed:
        with naming_unreadable(Path(path)):
            return prefixed(Path(path))
    found = read_form(Path(where), hints)
    if found is None:
        raise UserError(f"{where}: expected a folder of a form that is known, a list file, or fashion-mnist")
    return found


def refuse_unread(where: str, hints: Hints, form: str) -> None:
    """Raises UserError for hints that a form does not ask for."""
    for option, value, forms in (
        ("--val-list", hints.val_list, BY_LISTS),
        ("--labels", hints.labels, BY_NUMBERS),
    ):
        if value is not None and form not in forms:
            raise UserError(f"{option} {value}: {where} does not ask for it: expected it with {', '.join(forms)}")


def refuse_repeated(path: Path, source: Source) -> None:
    """Raises UserError for two images of one name, of which an archive or a list may have any number."""
    for split, samples in source.splits.items():
        if isinstance(samples, Compact) and (name := samples.repeated()):
            raise UserError(f"{path}: {split}: two images are called {shown(name)}: expected one of each name")


def forms_of(path: Path) -> list[str]:
    """The names of those of HINTED that a folder holds."""
    with naming_unreadable(path):
        return [name for name, (matches, _) in HINTED.items() if path.is_dir() and matches(path)]


def read_form(path: Path, hints: Hints = NO_HINTS) -> Source | None:
    """The data set in a file or folder, by the first form that matches; None where there is neither."""
    forms = [hints.form] if hints.form else forms_of(path)
    with naming_unreadable(path):
        if forms:
            source: Source | None = HINTED[forms[0]][1](path, hints)
        else:
            source = next((read(path) for matches, read in FORMS if matches(path)), None)
        if source:
            refuse_repeated(path, source)
        return source
