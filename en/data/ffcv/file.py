"""FFCV's file, read with every decode checked.

It reads what writer.py writes, and stock files that have an RGB image and an integer label, or bytes.
"""

import mmap
import zlib
from pathlib import Path

import numpy as np
from torch import Tensor

from en.data.ffcv.tables import JPEG, RAW, read_tables
from en.data.jpeg import Images, decode
from en.data.jpeg_kind import unusual_kind
from en.data.order import Ints
from en.data.palette import Colour
from en.data.showing import Decoder, show
from en.data.targets import Field, Stored
from en.data.views import View
from en.errors import RunError, UserError


class BetonFile:
    """A .beton file open for reading: sizes and labels in memory, images and masks mapped from disk.

    Args:
        verify: when the bytes of a sample are compared with its checksum, where the file has them: once, always, never.

    Attributes:
        path: the file.
        heights, widths: (samples,) int64.
        field: how the targets are kept.
        targets: (samples,) int64 class numbers, or where the bytes lie; see `stored`.
        digest: hex SHA-256 of the samples' sizes, targets and positions in the file.
    Raises: UserError for a file that is missing, truncated, damaged, of another version or with other fields.
    """

    def __init__(self, path: Path, verify: str = "once") -> None:
        self.path, self._verify = path, verify
        try:
            if not path.is_file():
                raise UserError(f"{path}: no such file: expected the output of scripts/prepare_data.py")
            with path.open("rb") as file:
                tables = read_tables(file, path)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}: expected a readable .beton file") from error
        self.heights, self.widths, self.digest = tables.heights, tables.widths, tables.digest
        self.field, self.targets = tables.field, tables.targets
        self._modes, self._offsets, self._sizes = tables.modes, tables.offsets, tables.sizes
        self._checksums = tables.checksums
        self._verified = np.zeros(len(self), bool)
        self._length = len(self._map)
        self._address = np.frombuffer(self._map, np.uint8).ctypes.data

    def __len__(self) -> int:
        return len(self.heights)

    def check_length(self) -> None:
        """Raises RunError if the file was truncated since it was opened: reading the rest would kill the process."""
        length = self._map.size()
        if length < self._length:
            raise RunError(f"{self.path}: truncated while in use: expected {self._length} bytes, found {length}")

    def stored(self, sample: int) -> Stored:
        """The target of a sample as it is kept."""
        kept = self.targets[sample]
        return int(kept) if self.field is Field.INT else self._map[int(kept["ptr"]) : int(kept["ptr"] + kept["size"])]

    def release(self, samples: Ints) -> None:
        """Gives the memory back that holds pages of these samples, which follow each other; they are read anew."""
        start = int(self._offsets[samples[0]]) // mmap.PAGESIZE * mmap.PAGESIZE
        end = int((self._offsets[samples] + self._sizes[samples]).max())
        self._map.madvise(mmap.MADV_DONTNEED, start, end - start)

    def decode(
        self, samples: Ints, view: View, out: Tensor, padding: Colour = (0, 0, 0), decoder: Decoder = decode
    ) -> dict[int, str]:
        """Decodes what a view shows of some samples, without the GIL.

        Args:
            samples: (N,)
            out: (N, H, W, 3) uint8 of the view's size, contiguous.
            padding: the colour of what lies beyond an image.
            decoder: ours, or FFCV's kernels (see en.data.ffcv.decode).
        Returns: by row, what is wrong with a sample that is damaged, of a kind that is not decoded, or of another size
            than in the metadata. Its pixels are undefined then.
        """
        modes, sizes = self._modes[samples], (self.heights[samples], self.widths[samples])
        addresses = self._address + self._offsets[samples]
        images = Images(addresses.astype(np.uint64), self._sizes[samples], *sizes, modes == RAW)
        refused = show(images, view, padding, out, decoder)
        said = {row: self._refusal(int(samples[row]), reason) for row, reason in refused.items()}
        said |= {
            row: f"sample {samples[row]} is damaged: its bytes are not as written" for row in self._changed(samples)
        }
        return {row: f"{self.path}: {reason}" for row, reason in said.items()}

    def _changed(self, samples: Ints) -> list[int]:
        """Finds the rows of samples whose bytes do not have their checksums, of those that are to be verified."""
        if self._checksums is None or self._verify == "never":
            return []
        changed = []
        for row, sample in enumerate(samples.tolist()):
            if self._verified[sample] and self._verify == "once":
                continue
            start, size = int(self._offsets[sample]), int(self._sizes[sample])
            checksum = zlib.crc32(memoryview(self._map)[start : start + size])  # without the GIL
            if isinstance(target := self.stored(sample), bytes):
                checksum = zlib.crc32(target, checksum)
            self._verified[sample] = checksum == self._checksums[sample]
            if not self._verified[sample]:
                changed.append(row)
        return changed

    def _refusal(self, sample: int, reason: str) -> str:
        """Says of a sample that is not decoded whether it is damaged, or of a kind that the decoder does not know."""
        start = int(self._offsets[sample])
        kind = unusual_kind(self._map[start : start + int(self._sizes[sample])])
        if self._modes[sample] == JPEG and kind and "truncated" not in reason:
            return f"sample {sample} is of a kind that is not decoded, {kind}: {reason}: expected it stored raw"
        return f"sample {sample} is damaged: {reason}"
