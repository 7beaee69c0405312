"""Names of classes as users write them: the blanks around them, and names that look alike."""

import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from en.errors import warn

NO_WIDTH = "\u200b\u2060\ufeff"  # spaces and joiners that str.strip leaves, and the mark at a file's beginning
SHOWN = 3  # groups of names in a warning


def trimmed(text: str) -> str:
    """Removes blanks of any kind from both ends of a text, no-break spaces and those without width among them."""
    while text != (text := text.strip().strip(NO_WIDTH)):
        pass
    return text


def warn_of_alike(where: Path, names: Iterable[str]) -> None:
    """Warns, once a process, of classes whose names look alike: they may be meant to be one.

    Args:
        where: the list or folder that the names are from.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(as_seen(name), []).append(name)
    found = [in_words(group) for group in groups.values() if len(group) > 1]
    if found:
        more = f" (and {len(found) - SHOWN} more)" if len(found) > SHOWN else ""
        told = "; ".join(found[:SHOWN]) + more
        say_once(f"{where}: classes that differ in case, blanks or Unicode form alone: {told}")


@cache
def say_once(message: str) -> None:
    warn(message)  # both splits of class folders are read, and each would warn


def as_seen(name: str) -> str:
    """Folds what a reader hardly sees: case, the form of composed letters, the kind and number of blanks."""
    folded = unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())
    return " ".join("".join(char for char in folded if unicodedata.category(char) != "Cf").split())


def in_words(names: list[str]) -> str:
    """Lists names, with escapes where letters alone would not tell them apart."""
    forms = {unicodedata.normalize("NFC", name) for name in names}
    return " and ".join(map(repr if len(forms) == len(names) else ascii, names))
