"""Where images come from before preparation: one file a form, and the registry of the forms."""

from collections.abc import Callable
from pathlib import Path

from en.data.sources.fashion_mnist import find_fashion_mnist, is_fashion_mnist, read_fashion_mnist
from en.data.sources.folders import read_folders
from en.data.sources.lists import read_list
from en.data.sources.source import SPLITS, Sample, Source, as_text, naming_unreadable
from en.errors import UserError

NAMED: dict[str, Callable[[], Source]] = {"fashion-mnist": lambda: read_fashion_mnist(find_fashion_mnist())}
FORMS: tuple[tuple[Callable[[Path], bool], Callable[[Path], Source]], ...] = (  # the first that matches reads
    (Path.is_file, read_list),
    (is_fashion_mnist, read_fashion_mnist),
    (Path.is_dir, read_folders),
)

__all__ = ["SPLITS", "Sample", "Source", "as_text", "read_folders", "read_source"]


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
    path = Path(where)
    with naming_unreadable(path):
        for matches, read in FORMS:
            if matches(path):
                return read(path)
    raise UserError(f"{where}: expected a folder with train/ and val/, a list file, or fashion-mnist")
