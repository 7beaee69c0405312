"""Colours of classes, for pictures of maps."""

Colour = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""


def varied(count: int) -> list[Colour]:
    """As many colours as differ well, the first black: PASCAL VOC's rule, whose sets have no other.

    Bits 0, 1, 2 of the class number are the highest bits of red, green and blue, bits 3, 4, 5 the next ones, and so on.
    """
    return [(channel(number), channel(number >> 1), channel(number >> 2)) for number in range(count)]


def channel(bits: int) -> int:
    """Puts every third bit, from the lowest on, into a byte from its highest bit on."""
    return sum((bits >> 3 * place & 1) << 7 - place for place in range(8))
