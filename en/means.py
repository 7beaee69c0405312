"""Marks what keys of a configuration mean, on their fields. Read by `en.config.meaning` alone."""

from enum import Flag, auto
from typing import Annotated, TypeVar

T = TypeVar("T")


class Means(Flag):
    """Answers questions about a key, one a member; a key is all of those that are true of it.

    Attributes:
        OPERATION: none of them: how a run is carried out, not what it computes.
        RECIPE: runs that differ in it are not of one recipe, so that a comparison is of that too.
        FIXED: a resumed run keeps it.
        ORDER: what is left of an epoch depends on it: a run that is resumed within one keeps it.
        LENGTH: where the run ends: a resumed run may be longer or shorter, told as before and not over already.
        PLACE: where one machine has or does something: ranks may differ in it.
        OWN: each run has one of its own, which a suite gives and a report shows beside the rest.
        SCORES: what a network of given weights answers depends on it.
        PIXELS: which pixels it is shown in evaluation depends on it: scores of others do not compare.
    """

    OPERATION = 0
    RECIPE = auto()
    FIXED = auto()
    ORDER = auto()
    LENGTH = auto()
    PLACE = auto()
    OWN = auto()
    SCORES = auto()
    PIXELS = auto()


Operation = Annotated[T, Means.OPERATION]
Place = Annotated[T, Means.PLACE]
Recipe = Annotated[T, Means.RECIPE]
Fixed = Annotated[T, Means.RECIPE | Means.FIXED]
Length = Annotated[T, Means.RECIPE | Means.LENGTH]
Pixels = Annotated[T, Means.RECIPE | Means.PIXELS]
