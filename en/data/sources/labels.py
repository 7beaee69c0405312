"""Finds the classes of numbers in sets of shards, by the WordNet ids in their files' names."""

from pathlib import Path

from en.data.sources.compact import Compact
from en.data.sources.source import as_line
from en.data.sources.val_labels import Hints
from en.data.sources.wordnet import IMAGENET_1K, LAST_WNID, WNID, are_wnids, imagenet_classes, in_order, renumbered
from en.errors import UserError, shown


class Labels:
    """The WordNet id of each label, as far as names of files tell.

    Args:
        where: the set, for messages.
    """

    def __init__(self, where: Path) -> None:
        self._where, self._count = where, 0
        self._wnids: dict[int, str] = {}

    def name(self, label: int, file: str, otherwise: str) -> str:
        """Learns a label's WordNet id from a file's name, and returns the sample's name: that in class folders.

        Args:
            file: such as n01440764_10026.JPEG; in Hugging Face's copy ILSVRC2012_val_00000293_n01440764.JPEG.
            otherwise: what a sample is called whose file has no WordNet id.
        Raises: UserError for a label with two WordNet ids.
        """
        self._count = max(self._count, label + 1)
        base = as_line(Path(file).name)
        last, first = LAST_WNID.search(base), WNID.match(base)
        wnid = last[1] if last else first[0] if first else ""
        if not wnid:
            return otherwise
        if (known := self._wnids.setdefault(label, wnid)) != wnid:
            raise UserError(
                f"{self._where}: label {label} is {known} and, of {shown(base)}, {wnid}: expected one class"
            )
        return f"{wnid}/{LAST_WNID.sub('', base) if last else base}"

    def classes(self, names: list[str], hints: Hints) -> list[str]:
        """The classes in the labels' order: WordNet ids, else names, else the numbers.

        Args:
            names: those that the set gives its classes; may be empty.
        """
        if names and len(names) < self._count:
            raise UserError(
                f"{self._where}: label {self._count - 1}: expected at most {len(names) - 1}, as it has names"
            )
        count = len(names) or self._count
        if len(self._wnids) == count:
            return [self._wnids[label] for label in range(count)]
        if hints.labels == "sorted":
            if count != IMAGENET_1K:
                raise UserError(f"{self._where}: --labels sorted: {count} classes: expected ImageNet's {IMAGENET_1K}")
            return [*imagenet_classes()]
        return names or [str(label) for label in range(count)]


def by_wnid(splits: dict[str, Compact], classes: list[str]) -> tuple[list[str], dict[str, Compact]]:
    """Numbers classes in the order of their WordNet ids, if they have any: as class folders number them."""
    if not are_wnids(classes) or classes == sorted(classes):
        return classes, splits
    numbers = dict(enumerate(in_order(classes)))
    return sorted(classes), {split: Compact(renumbered(samples, numbers)) for split, samples in splits.items()}
