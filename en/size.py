"""The size of images, pixels, as code, keys and people write it."""

from collections.abc import Sequence

Size = tuple[int, int]
"""Height and width."""


def size_of(key: int | Sequence[int]) -> Size:
    """The size that a key means: the side of a square, or height and width."""
    height, width = (key, key) if isinstance(key, int) else key
    return height, width


def as_key(size: Size) -> int | list[int]:
    """A size as a key has it: of a square its side."""
    height, width = size
    return height if height == width else [height, width]


def in_words(size: Size) -> str:
    """A size in words: `224`, or `512 x 1024`, the height first."""
    key = as_key(size)
    return str(key) if isinstance(key, int) else f"{size[0]} x {size[1]}"
