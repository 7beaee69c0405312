"""Images from class folders or FFCV files, behind one small protocol. Each loader is imported when asked for."""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from en.data.loader import Batch, ImageLoader, Part, Reading
from en.errors import RunError


def open_ffcv(root: Path, split: str, reading: Reading) -> ImageLoader:
    from en.data.ffcv.loader import FfcvLoader

    return FfcvLoader(root, split, reading)


def open_folder(root: Path, split: str, reading: Reading) -> ImageLoader:
    from en.data.folder import FolderLoader

    return FolderLoader(root, split, reading)


@contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Turns torch's error about a dead DataLoader worker, which comes anywhere in the main thread, into a RunError."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RunError(f"the data loader failed: {str(error).splitlines()[0]}") from error
    finally:
        if sys.exc_info()[0] is not None:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise once more
            for child in multiprocessing.active_children():
                child.kill()  # one that is stopped would keep this process from ending


LOADERS: dict[str, Callable[[Path, str, Reading], ImageLoader]] = {"ffcv": open_ffcv, "folder": open_folder}

__all__ = ["LOADERS", "Batch", "ImageLoader", "Part", "Reading", "naming_dead_workers"]
