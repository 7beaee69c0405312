"""Images from class folders or FFCV files, behind one small protocol.

The FFCV modules are imported when asked for, so that data.loader=folder works where FFCV cannot be built.
"""

from collections.abc import Callable
from pathlib import Path

from en.data.loading import Batch, ImageLoader, Reading, Share
from en.data.sampling import Augmentation
from en.errors import UserError


def open_ffcv(root: Path, split: str, reading: Reading) -> ImageLoader:
    try:
        from en.data.ffcv_loader import FfcvLoader
    except ImportError as error:
        raise UserError(f"data.loader=ffcv: expected the package ffcv, which does not import ({error}); try folder") from error
    return FfcvLoader(root, split, reading)


def open_folder(root: Path, split: str, reading: Reading) -> ImageLoader:
    from en.data.folder_loader import FolderLoader

    return FolderLoader(root, split, reading)


LOADERS: dict[str, Callable[[Path, str, Reading], ImageLoader]] = {"ffcv": open_ffcv, "folder": open_folder}

__all__ = ["LOADERS", "Augmentation", "Batch", "ImageLoader", "Reading", "Share"]
