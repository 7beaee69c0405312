"""Samples of large sets in some tens of bytes each, where objects would take a thousand."""

import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from en.data.sources.source import Packed, Sample
from en.data.targets import Pixels


class Texts:
    """Texts one after another, found by their numbers."""

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array("Q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> str:
        return self._bytes[self._ends[number] : self._ends[number + 1]].decode(errors="surrogateescape")

    def append(self, text: str) -> None:
        self._bytes += text.encode(errors="surrogateescape")
        self._ends.append(len(self._bytes))


class Images:
    """Images of samples: files, and parts of files, which are made of a path and two numbers."""

    def __init__(self) -> None:
        self._paths, self._numbers, self._kinds = Texts(), array("q"), array("B")
        self._known: list[Callable[[Path, int, int], Packed]] = []
        self._last = Path()

    def append(self, image: Path | Packed | Pixels) -> None:
        if isinstance(image, Path):
            kind, (path, start, size) = 0, (image, 0, 0)
        else:
            assert isinstance(image, tuple)
            if type(image) not in self._known:
                self._known.append(type(image))
            kind, (path, start, size) = 1 + self._known.index(type(image)), image
        if path != self._last or not len(self._paths):
            self._paths.append(os.fspath(path))
            self._last = path
        self._kinds.append(kind)
        self._numbers.extend((len(self._paths) - 1, start, size))

    def __getitem__(self, number: int) -> Path | Packed:
        text, start, size = self._numbers[3 * number : 3 * number + 3]
        path, kind = Path(self._paths[text]), self._kinds[number]
        return self._known[kind - 1](path, start, size) if kind else path

    def size(self) -> int:
        """Bytes of all that are parts of files."""
        return sum(self._numbers[2::3])


class Compact(Sequence[Sample]):
    """Samples with a class number, each made anew when it is asked for.

    Attributes:
        targets: their class numbers, which may be replaced.
    """

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        self.images, self._names, self.targets = Images(), Texts(), array("q")
        for sample in samples:
            self.append(sample)

    def append(self, sample: Sample) -> None:
        assert isinstance(sample.target, int)
        self.images.append(sample.image)
        self._names.append(sample.name)
        self.targets.append(sample.target)

    def repeated(self) -> str | None:
        """The first name that a sample before it has too."""
        hashes = np.fromiter((hash(self._names[one]) for one in range(len(self))), np.int64, len(self))
        kinds, counts = np.unique(hashes, return_counts=True)
        seen: set[str] = set()
        for one in np.flatnonzero(np.isin(hashes, kinds[counts > 1])).tolist():
            if (name := self._names[one]) in seen:
                return name
            seen.add(name)
        return None

    def __len__(self) -> int:
        return len(self.targets)

    @overload
    def __getitem__(self, number: int) -> Sample: ...
    @overload
    def __getitem__(self, number: slice) -> list[Sample]: ...
    def __getitem__(self, number: int | slice) -> Sample | list[Sample]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        one = range(len(self))[number]
        return Sample(self._names[one], self.images[one], self.targets[one])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(Sample.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]
