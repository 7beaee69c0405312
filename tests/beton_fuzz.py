"""Mutates the tables of OUT/val.beton and reads each mutant in a fork: beton_fuzz.py OUT SEED MUTATIONS [--sealed].

A mutant has to end in one line (UserError, RunError) or in the original's pixels and targets. Mutations that no reader
of an unsealed file can notice are made in sealed files only: another label, two samples swapped, a raw image's sides
swapped. Prints the counts of the outcomes as a JSON object; each forbidden one is a line on stderr and makes the exit
code 1.
"""

import json
import os
import resource
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from en.data import LOADERS, Part, Reading
from en.data.crops import CentreCrop, RandomResizedCrop
from en.data.ffcv.tables import ALLOCATION, FIELD, HEADER, METADATA, SAMPLES
from en.data.targets import Field
from en.errors import RunError, UserError

BATCH = 50  # mutations per child
SECONDS, MEMORY = 30, 1 << 30  # what a child may use beyond what it starts with
SAMPLE = SAMPLES[Field.INT]
CROP = RandomResizedCrop((0.25, 1.0), (3 / 4, 4 / 3), 0.5)
READING = Reading(Part(64, 1, 0, 1, 0), CROP, CentreCrop(1.0), 1, 20, False)
Spot = tuple[int, int]  # first byte, bytes
Mutation = tuple[int | None, list[tuple[int, bytes]]]  # new length of the file, bytes to write at offsets


def read(root: Path) -> tuple[bytes, list[int]]:
    loader = LOADERS["ffcv"](root, "val", READING)
    try:
        batches = [
            (batch.images.permute(0, 2, 3, 1).numpy().tobytes(), batch.targets.tolist())
            for batch in loader.eval_epoch((24, 24))
        ]
    finally:
        loader.close()
    return b"".join(pixels for pixels, _ in batches), [target for _, targets in batches for target in targets]


def columns(original: bytes, sealed: bool) -> list[list[Spot]]:
    """The location of every value in the tables, grouped by kind."""
    (header,) = np.frombuffer(original, HEADER, 1)
    count, table_at = int(header["num_samples"]), int(header["alloc_table_ptr"])
    image = SAMPLE.fields["f0"][0]
    found = [[(start, kind.itemsize)] for kind, start in HEADER.fields.values()]
    found += [[(HEADER.itemsize + FIELD.itemsize * number, 1)] for number in range(2)]
    inner = [*image.fields.values(), *([SAMPLE.fields["f1"]] if sealed else [])]
    for rows, size, parts in [
        (METADATA, SAMPLE.itemsize, inner),
        (table_at, ALLOCATION.itemsize, ALLOCATION.fields.values()),
    ]:
        found += [[(rows + size * row + start, kind.itemsize) for row in range(count)] for kind, start in parts]
    return found


def mutations(original: bytes, seed: int, sealed: bool) -> Iterator[Mutation]:
    random, kinds = np.random.default_rng(seed), columns(original, sealed)
    table_at = kinds[-3][0][0]
    edges = [0, 1, 2, 255, 2**16 - 1, 2**31, 2**32 - 1, 2**60, 2**63 - 1, 2**63, 2**64 - 1, len(original), table_at]

    def value(spot: Spot) -> int:
        return int.from_bytes(original[spot[0] : sum(spot)], "little")

    def one() -> tuple[int, bytes]:
        column = kinds[random.integers(len(kinds))]
        spot, other = (column[random.integers(len(column))] for _ in range(2))
        near = [value(spot) + step for step in (-24, -1, 1, 8, 24)] + [2 * value(spot), value(spot) // 2]
        flipped = value(spot) ^ (1 << int(random.integers(8 * spot[1])))
        chosen = [flipped, value(other), edges[random.integers(len(edges))], near[random.integers(len(near))]]
        return spot[0], (chosen[random.integers(4)] % (1 << 8 * spot[1])).to_bytes(spot[1], "little")

    def swapped() -> list[tuple[int, bytes]]:
        """Swaps the values of two rows in one to three columns."""
        rows = random.permutation(len(kinds[-1]))[:2]
        several = [column for column in kinds if len(column) > 1]
        pairs = [
            [column[row] for row in rows] for column in (several[i] for i in random.integers(len(several), size=3))
        ]
        return [
            (a[0], original[b[0] : sum(b)]) for first, second in pairs for a, b in ((first, second), (second, first))
        ]

    while True:
        kind = random.random()
        if kind < 0.05:
            yield int(len(original) + random.integers(-200, 200)), []
        elif kind < 0.15 and sealed:
            yield None, swapped()
        elif kind < 0.25 and sealed:
            place = int(random.integers(METADATA + SAMPLE.itemsize * len(kinds[-1])))
            yield None, [(place, bytes([original[place] ^ int(random.integers(1, 256))]))]
        else:
            yield None, [one() for _ in range(random.choice([1, 1, 1, 2, 3]))]


def outcome(root: Path, expected: tuple[bytes, list[int]]) -> str:
    try:
        return "same" if read(root) == expected else "other pixels or targets"
    except (UserError, RunError) as error:
        return "refused" if len(str(error).splitlines()) == 1 else f"many lines: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


def put(path: Path, length: int | None, places: list[tuple[int, bytes]]) -> None:
    with path.open("r+b") as file:
        for start, content in places:
            file.seek(start)
            file.write(content)
        if length is not None:
            file.truncate(length)


def child(root: Path, part: list[Mutation], original: bytes, expected: tuple[bytes, list[int]], report: int) -> None:
    path = root / "val.beton"
    initial = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (initial + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(SECONDS)
    for length, places in part:
        put(path, length, places)
        os.write(report, (outcome(root, expected).replace("\n", " ") + "\n").encode())
        restore(path, original)


def restore(path: Path, original: bytes) -> None:
    """Restores the tables; mutations leave the data between them alone."""
    metadata_end = METADATA + SAMPLE.itemsize * int(np.frombuffer(original, HEADER, 1)["num_samples"][0])
    table_at = int(np.frombuffer(original, HEADER, 1)["alloc_table_ptr"][0])
    put(path, len(original), [(0, original[:metadata_end]), (table_at - 200, original[table_at - 200 :])])


def forked(root: Path, part: list[Mutation], original: bytes, expected: tuple[bytes, list[int]]) -> list[str]:
    """The outcomes of the mutations of `part`, up to the first that ended the child."""
    receive, send = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(receive)
        try:
            child(root, part, original, expected, send)
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        outcomes = pipe.read().splitlines()
    _, status = os.waitpid(process, 0)
    if len(outcomes) < len(part):
        restore(root / "val.beton", original)
        outcomes.append(f"ended by signal {os.WTERMSIG(status)}")
    return outcomes


def main() -> int:
    root, seed, number, sealed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), "--sealed" in sys.argv
    original, counts = (root / "val.beton").read_bytes(), Counter[str]()
    expected = read(root)
    source = mutations(original, seed, sealed)
    left = [next(source) for _ in range(number)]
    while left:
        outcomes = forked(root, left[:BATCH], original, expected)
        for mutation, result in zip(left, outcomes, strict=False):
            counts[result if result in ("same", "refused") else "failed"] += 1
            if result not in ("same", "refused"):
                print(f"{result}: {mutation}", file=sys.stderr)
        left = left[len(outcomes) :]
    print(json.dumps(counts))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
