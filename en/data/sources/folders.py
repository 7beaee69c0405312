"""Class folders: root/{train,val}/CLASS/**, or those of one split."""

from collections.abc import Iterator
from pathlib import Path

from en.data.sources.classes import warn_of_alike
from en.data.sources.compact import Compact
from en.data.sources.source import SPLITS, TEST, Sample, Source, as_text, name_of, naming_unreadable
from en.errors import UserError


def read_folders(root: Path) -> Source:
    """Reads the samples of root/{train,val}/CLASS/**, in sorted order; classes are train's folders.

    A set may have train alone, val alone or, without both, test; its classes are that one's folders.

    Names that begin with "." or "@" are ignored, links to folders are followed, and everything else in a class folder
    is a sample, even a dangling link. Warns of classes whose names look alike.

    Raises: UserError for anything that is not of this form.
    """
    with naming_unreadable(root):
        folders = {split: class_folders(root / split) for split in splits_in(root)}
        classes = sorted(next(iter(folders.values())))
        refuse_masks(root, classes)
        for split in folders:
            refuse_other_classes(root, classes, split, set(folders[split]))
        splits = {split: Compact(folder_samples(root / split, folders[split], classes)) for split in folders}
        for split, samples in splits.items():
            if not samples:
                raise UserError(f"{root / split}: expected image files in its class folders, found none")
    warn_of_alike(root, classes)
    return Source(as_text(root.resolve().name), classes, splits)


def refuse_masks(root: Path, classes: list[str]) -> None:
    """Raises UserError for images and masks split by split, which would be taken for images of two classes."""
    if len(classes) == 2 and "images" in classes and {*classes} & {"masks", "labels", "annotations"}:
        other = next(name for name in classes if name != "images")
        raise UserError(
            f"{root}: folders {{train,val}}/{{images,{other}}}: expected images/{{train,val}}, masks/{{train,val}} and "
            "classes.txt, for images with masks"
        )


def splits_in(root: Path) -> list[str]:
    """The splits whose folders a folder has; both of training where it has none, for a message that names them.

    A test folder beside others is not read: ImageNet's holds images without classes.
    """
    found = [split for split in SPLITS if (root / split).is_dir()]
    return found or ([TEST] if (root / TEST).is_dir() else [*SPLITS])


def is_hidden(path: Path) -> bool:
    return path.name.startswith((".", "@"))  # @eaDir holds a NAS's thumbnails


def class_folders(split: Path) -> dict[str, Path]:
    """The class folders of a split, by name. Raises: UserError for anything else that is not hidden."""
    if not split.is_dir():
        raise UserError(f"{split}: expected a folder with one folder of images per class")
    found = sorted(path for path in split.iterdir() if not is_hidden(path))
    for path in found:
        if not path.is_dir():
            raise UserError(
                f"{as_text(str(path))}: expected only class folders in {split}, found a file or a dangling link"
            )
        if as_text(path.name) != path.name:
            raise UserError(f"{as_text(str(path))}: expected a class name in UTF-8")
    if not found:
        raise UserError(f"{split}: expected one folder of images per class, found none")
    return {path.name: path for path in found}


def refuse_other_classes(root: Path, classes: list[str], split: str, own: set[str]) -> None:
    unknown, missing = sorted(own - set(classes)), sorted(set(classes) - own)
    if unknown:
        found = f"{root / split / unknown[0]}"
        raise UserError(f"{found}: expected the classes of {root / 'train'}, which has no {unknown[0]!r}")
    if missing:
        lacking = f"{root / split / missing[0]}"
        raise UserError(f"{lacking}: no such folder: expected one for every class of {root / 'train'}")


def folder_samples(split: Path, folders: dict[str, Path], classes: list[str]) -> Iterator[Sample]:
    for target, name in enumerate(classes):
        files = list(files_below(folders[name], ()))
        if not files and split.name == "train":
            raise UserError(f"{folders[name]}: expected image files, found none")
        yield from (Sample(name_of(path, split), path, target) for path in files)


def files_below(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """The files in a folder and its subfolders, sorted; `above` holds the folders above it."""
    place = folder.resolve()
    if place in above:
        raise UserError(f"{as_text(str(folder))}: expected a folder, found a link to a folder that contains it")
    for path in sorted(folder.iterdir()):
        if is_hidden(path):
            continue
        if path.is_dir():
            yield from files_below(path, (*above, place))
        else:
            yield path
