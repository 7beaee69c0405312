"""Archives in the place of a set: compressed ones cannot be read but from their beginning, so that all are refused."""

import tarfile
from pathlib import Path
from typing import NoReturn

from en.data.sources.source import ALL_SPLITS, as_text
from en.data.sources.tars import compression
from en.errors import UserError, listed

ENDS = (".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz", ".tar.zst", ".zip")


def is_archive(path: Path) -> bool:
    return path.is_file() and (bool(compression(path)) or tarfile.is_tarfile(path))


def refuse_archive(path: Path) -> NoReturn:
    kind = f"an archive compressed by {compression(path)}" if compression(path) else "a tar"
    raise UserError(
        f"{path}: {kind}: expected a folder: that which unpacking it makes, or of ILSVRC2012's and webdataset's tars "
        "the one that holds them"
    )


def archives_in(path: Path) -> list[str]:
    """The archives in a folder that has no folder of a split."""
    if not path.is_dir() or any((path / split).is_dir() for split in ALL_SPLITS):
        return []
    return sorted(as_text(each.name) for each in path.iterdir() if each.name.lower().endswith(ENDS))


def holds_archives(path: Path) -> bool:
    return bool(archives_in(path))


def refuse_archives(path: Path) -> NoReturn:
    raise UserError(
        f"{path}: holds {listed(archives_in(path), 3)}: not a form that is read in place: expected the folder that "
        "unpacking makes"
    )
