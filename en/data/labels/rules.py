"""Rules by which labels are made wrong: counts are exact, and drawn from a seed and the samples' names alone."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import numpy as np

from en.data.order import Ints
from en.errors import UserError, listed

Givable = Mapping[int, Sequence[int]]
"""By class number, the classes of which a chosen sample of it is given one."""
ASYMMETRIC = "asymmetric"
CIFAR10 = {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}
"""Classes of CIFAR-10 taken for others, as in Patrini et al., CVPR 2017, and DivideMix."""


def others(classes: int) -> Givable:
    """Any class but its own: the whole rate is wrong."""
    return {own: [other for other in range(classes) if other != own] for own in range(classes)}


def all_classes(classes: int) -> Givable:
    """Any class, its own among them: of the rate, (K - 1) / K is wrong."""
    return {own: range(classes) for own in range(classes)}


def following(classes: int) -> Givable:
    """The next class, and the first one after the last."""
    return {own: [(own + 1) % classes] for own in range(classes)}


RULES: dict[str, Callable[[int], Givable]] = {
    "symmetric": others,
    "symmetric-with-true": all_classes,
    "pair": following,
}


def by_names(pairs: Mapping[str, str], classes: Sequence[str], where: str) -> Givable:
    """Classes by their names, each taken for one other; those that are not named keep their labels.

    Args:
        where: the pairs are from, for messages.
    Raises: UserError for a name that is no class, and for a class taken for itself.
    """
    number = {name: index for index, name in enumerate(classes)}
    if unknown := sorted({*pairs, *pairs.values()} - {*classes}):
        raise UserError(f"{where}: {listed(unknown, 3)}: expected classes of the set: {listed(classes)}")
    if same := [name for name, other in pairs.items() if name == other]:
        raise UserError(f"{where}: {same[0]} for {same[0]}: expected another class")
    return {number[name]: [number[other]] for name, other in pairs.items()}


def relabel(names: Sequence[str], labels: Ints, givable: Givable, rate: Fraction, seed: int) -> Ints:
    """Gives a share of the samples labels by a rule.

    Of n samples whose class has others to be given, floor(rate n + 1/2) are chosen, of each class its share of them, up
    to one; those of a class are given its others in turns. A sample's rank in its class is that of a hash of seed and
    name, so that neither the order of the set nor other classes matter to it (our choice; published code tosses coins).

    Args:
        names: of the samples.
        labels: their class numbers, (n,).
        rate: of those samples, 0 to 1.
    Returns: the class numbers that they are given, (n,).
    """
    order = np.array(sorted(range(len(names)), key=lambda sample: drawn(seed, names[sample])), np.int64)
    sizes = {own: int((labels == own).sum()) for own in givable}
    given: Ints = labels.copy()
    in_order = labels[order]
    for own, count in apportioned(sizes, rate).items():
        chosen = order[in_order == own][:count]
        turns = sorted(givable[own], key=lambda other: drawn(seed, f"{own} {other}"))
        given[chosen] = np.resize(np.array(turns, np.int64), count)
    return given


def drawn(seed: int, name: str) -> bytes:
    """Returns what a name is ordered by, the same on every machine and in every version of numpy."""
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()


def apportioned(sizes: Mapping[int, int], rate: Fraction) -> dict[int, int]:
    """Shares out floor(rate n + 1/2) of n in all: whole parts first, the rest by the largest remainders."""
    parts = {own: rate * size for own, size in sizes.items()}
    counts = {own: int(part) for own, part in parts.items()}
    rest = int(rate * sum(sizes.values()) + Fraction(1, 2)) - sum(counts.values())
    for own in sorted(parts, key=lambda own: (counts[own] - parts[own], own))[:rest]:
        counts[own] += 1
    return counts
