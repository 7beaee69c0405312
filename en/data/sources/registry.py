"""The registry of the forms in which data sets come, and the first that reads a given one."""

from collections.abc import Callable
from pathlib import Path

from en.data.sources.fashion_mnist import find_fashion_mnist, is_fashion_mnist, read_fashion_mnist
from en.data.sources.folders import read_folders
from en.data.sources.lists import read_list
from en.data.sources.source import Source, naming_unreadable
from en.errors import UserError

NAMED: dict[str, Callable[[], Source]] = {"fashion-mnist": lambda: read_fashion_mnist(find_fashion_mnist())}
FORMS: tuple[tuple[Callable[[Path], bool], Callable[[Path], Source]], ...] = (  # the first that matches reads
    (Path.is_file, read_list),
    (is_fashion_mnist, read_fashion_mnist),
    (Path.is_dir, read_folders),
)


def read_source(where: str) -> Source:
    """The data set at `where`.

    Args:
        where: a folder with train/CLASS/ and val/CLASS/ inside; a list file, each line `train|val path class`, paths
            relative to the file's folder; a folder with Fashion-MNIST's four .gz files; or the word fashion-mnist, for
            Debian's package dataset-fashion-mnist, else torchvision's download into the folder data/.
    Raises: UserError.
    """
    if where in NAMED:
        return NAMED[where]()
    found = read_form(Path(where))
    if found is None:
        raise UserError(f"{where}: expected a folder with train/ and val/, a list file, or fashion-mnist")
    return found


def read_form(path: Path) -> Source | None:
    """The data set in a file or folder, by the first form that matches; None where there is neither."""
    with naming_unreadable(path):
        return next((read(path) for matches, read in FORMS if matches(path)), None)
