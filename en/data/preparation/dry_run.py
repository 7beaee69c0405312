"""Foretells what a preparation gives and takes, from directories and indices alone: no image is read."""

import io
import time
from pathlib import Path

import numpy as np
from PIL import Image

from en.data.preparation.encode import FILES, Held, Storage, encode
from en.data.sources import Sample, Source
from en.data.targets import ClassIndex

LOOKED_AT = 1000  # files of each split, at equal distances, by whose sizes that of all is estimated
TRIAL_SIDE, TRIAL_QUALITY, TRIAL_S = (375, 500), 96, 1.0


def dry_run(source: Source, storage: Storage, workers: int) -> list[str]:
    """Says in lines what there is and what to expect.

    The time is that of a preparation of `workers` cores that nothing else uses and that wait for no disk, by how long a
    picture of noise takes here now.
    """
    read = {split: bytes_of(source, split) for split in source.splits}
    total, images = sum(read.values()), sum(map(len, source.splits.values()))
    lines = [f"{split}: {len(source.splits[split])} images, {in_bytes(read[split])}" for split in source.splits]
    size = f"at most about {in_bytes(total)}" if storage.kind in FILES else "known once images are decoded"
    seconds = total / bytes_per_second(storage) / workers
    lines.append(f"{len(source.classes)} classes, {images} images; size to expect: {size}")
    return [*lines, f"time to expect: {in_time(seconds)} with {workers} workers, if the disk gives as much"]


def bytes_of(source: Source, split: str) -> float:
    """Bytes of a split's images; of files, by the sizes of some."""
    samples = source.splits[split]
    looked_at = [samples[number] for number in range(0, len(samples), max(1, len(samples) // LOOKED_AT))]
    sizes = [size_of(sample) for sample in looked_at]
    return float(np.mean(sizes)) * len(samples) if sizes else 0.0


def size_of(sample: Sample) -> int:
    if isinstance(sample.image, Path):
        return sample.image.stat().st_size if sample.image.is_file() else 0
    return sample.image.nbytes if isinstance(sample.image, np.ndarray) else sample.image.size


def bytes_per_second(storage: Storage) -> float:
    """Measures the bytes of JPEG files that one process prepares a second, by one of smoothed noise."""
    content, count, started = trial(), 0, time.perf_counter()
    while count < 2 or time.perf_counter() - started < TRIAL_S:
        if count == 1:
            started = time.perf_counter()  # what the first loads and compiles is no part of it
        encode(Sample("trial", Held(content), 0), storage, ClassIndex(), 1)
        count += 1
    return (count - 1) * len(content) / (time.perf_counter() - started)


def trial() -> bytes:
    coarse = np.random.default_rng(0).integers(0, 255, (TRIAL_SIDE[0] // 5, TRIAL_SIDE[1] // 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(coarse).resize(TRIAL_SIDE[::-1], Image.Resampling.BICUBIC)
    image.save(buffer, "JPEG", quality=TRIAL_QUALITY, subsampling=0)
    return buffer.getvalue()


def in_bytes(count: float) -> str:
    unit, name = next((each for each in ((1e9, "GB"), (1e6, "MB")) if count >= each[0]), (1e3, "kB"))
    return f"{count / unit:.1f} {name}"


def in_time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min" if seconds >= 60 else "a minute"
