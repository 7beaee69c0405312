"""Where images come from before preparation: class folders, a list file, Fashion-MNIST's files."""

from pathlib import Path

from en.data.sources.fashion_mnist import fashion_mnist, find_fashion_mnist
from en.data.sources.folders import read_folders
from en.data.sources.lists import read_list
from en.data.sources.source import SPLITS, Sample, Source, reading_errors_told
from en.errors import UserError

__all__ = ["SPLITS", "Sample", "Source", "read_folders", "read_source"]


def read_source(where: str) -> Source:
    """The data set at `where`.

    Args:
        where: a folder with train/CLASS/ and val/CLASS/ inside; a list file, each line `train|val path class`, paths
            relative to the file's folder; a folder with Fashion-MNIST's four .gz files; or the word fashion-mnist, for
            Debian's package dataset-fashion-mnist, else torchvision's download into the folder data/.
    Raises: UserError.
    """
    path = Path(where)
    if where == "fashion-mnist":
        return fashion_mnist(find_fashion_mnist())
    with reading_errors_told(path):
        if path.is_file():
            return read_list(path)
        if not path.is_dir():
            raise UserError(f"{where}: expected a folder with train/ and val/, a list file, or fashion-mnist")
        if (path / "train-images-idx3-ubyte.gz").is_file():
            return fashion_mnist(path)
        return read_folders(path)
