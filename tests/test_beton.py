"""What a .beton file from elsewhere, or damaged on the way, can do to the process that reads it: end in one line, no more."""

from pathlib import Path

import numpy as np

from en.data.beton import BetonFile, Encoded, write_beton

PIXELS = np.random.default_rng(0).integers(0, 255, (3, 12, 10, 3), np.uint8)
RAWS = [Encoded(1, 10, 12, pixels.tobytes(), label) for label, pixels in enumerate(PIXELS)]


def write(path: Path, samples: list[Encoded]) -> BetonFile:
    write_beton(path, iter(samples), len(samples))
    return BetonFile(path)


def test_the_digest_tells_sizes_labels_and_places_apart_and_nothing_else(tmp_path):
    same, again = write(tmp_path / "a.beton", RAWS), write(tmp_path / "b.beton", RAWS)
    assert same.digest == again.digest and len(same.digest) == 64 and int(same.digest, 16)
    others = [
        [*RAWS[:2], RAWS[2]._replace(label=7)],
        [*RAWS[:2], RAWS[2]._replace(width=12, height=10)],
        [*RAWS[:2], RAWS[2]._replace(height=11, content=RAWS[2].content[: 3 * 11 * 10])],
        RAWS[:2],
    ]
    digests = {write(tmp_path / f"{number}.beton", samples).digest for number, samples in enumerate(others)}
    assert len(digests) == len(others) and same.digest not in digests
