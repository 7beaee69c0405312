"""Writes the files that fuzzing begins with: python tests/fuzz_seeds.py FOLDER."""

import sys
from pathlib import Path

import numpy as np
from jpeg_files import FACTORS, sampled, whole_jpegs
from progressive_files import SCRIPTS, progressive


def write_seeds(folder: Path) -> list[Path]:
    """Writes small whole files of many samplings, sizes and scans, with and without restart markers."""
    contents, scripts = list(whole_jpegs(0, 20)), list(SCRIPTS.values())
    for number, sides in enumerate([(1, 1), (9, 17), (40, 33), (70, 90)]):
        for sampling in ("4:4:4", "4:2:0", "4:1:1", "grey"):
            rng = np.random.default_rng(number)
            contents.append(sampled(*sides, FACTORS[sampling], rng, number))
            contents.append(progressive(*sides, FACTORS[sampling], scripts[number % len(scripts)], rng, number))
    paths = [folder / f"{number}.jpg" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


if __name__ == "__main__":
    write_seeds(Path(sys.argv[1]))
