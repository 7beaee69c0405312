"""The registry of the loaders. Each is imported when asked for."""

from collections.abc import Callable
from pathlib import Path

from en.data.loader import ImageLoader, Reading


def open_ffcv(root: Path, split: str, reading: Reading) -> ImageLoader:
    from en.data.ffcv.loader import FfcvLoader

    return FfcvLoader(root, split, reading)


def open_folder(root: Path, split: str, reading: Reading) -> ImageLoader:
    from en.data.folder import FolderLoader

    return FolderLoader(root, split, reading)


LOADERS: dict[str, Callable[[Path, str, Reading], ImageLoader]] = {"ffcv": open_ffcv, "folder": open_folder}
