"""The names of a prepared split's samples, beside its .beton file: a line each, after one that says of which file."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from en import durable
from en.data.ffcv.file import BetonFile
from en.errors import UserError

SUFFIX = ".names"
HEAD = "# samples of the .beton file "


def write_names(path: Path, digest: str, names: Iterable[str]) -> None:
    """Writes the names in the order of the samples and flushes the file to disk.

    Args:
        digest: the .beton file's.
    """
    content = bytearray()
    for line in chain([f"{HEAD}{digest}"], names):
        content += f"{line}\n".encode()
    durable.write(path, content)


def read_names(file: BetonFile) -> list[str]:
    """Reads the names of a file's samples, in their order.

    Raises: UserError where there are none, as in a set of an earlier version, and for those of another file.
    """
    path = file.path.with_suffix(SUFFIX)
    again = "expected the output of `en-prepare SOURCE OUT` of this version: prepare the set again"
    try:
        head, *names = path.read_bytes().decode().removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no names of the samples ({error}): {again}") from error
    if head != f"{HEAD}{file.digest}" or len(names) != len(file):
        raise UserError(f"{path}: names of other samples than {file.path.name}'s: {again}")
    return names
