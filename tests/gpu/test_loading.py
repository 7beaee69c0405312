"""JPEGs a second with all cores, by each loader that is installed."""

import os
import tempfile
from functools import partial
from pathlib import Path

from en.benchmarks.loader import BATCH, FFCV, FOLDER, ours, timed
from en.benchmarks.photographs import KINDS, make_images
from en.benchmarks.timing import interleaved, median
from en.data.sources import read_folders
from gpu.results import Report, Setup

PER_CORE, CROP = 256, 224  # images a core, pixels a side


def test_loading(setup: Setup, report: Report) -> None:
    """Images/s; what the GPU eats stands in the tables of steps."""
    cores = len(os.sched_getaffinity(0))
    workers, images = (1, BATCH) if setup.tiny else (cores, max(PER_CORE * cores, 4 * BATCH))
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        size = make_images(root / "folder", KINDS[0], None, images, workers)
        makers = {FOLDER: partial(ours, "folder", root / "folder", CROP, workers)}
        if prepared(root, workers, report):
            makers[FFCV] = partial(ours, "ffcv", root / "jpeg", CROP, workers)
        cases = {name: partial(timed, make()) for name, make in makers.items()}
        seconds = interleaved(cases, 1 if setup.tiny else 3, "loaders", warmups=1)
    title = f"{images} JPEGs of {size / images / 1000:.0f} kB, crop {CROP}, {workers} workers"
    for name, values in seconds.items():
        report.row(title, loader=name, **{"images/s": images / median(values)}, n=len(values))
        report.figure(f"images/s of {name}", images / median(values))


def prepared(root: Path, workers: int, report: Report) -> bool:
    """Prepares the images for FFCV, if that is installed."""
    try:
        from en.data.preparation.encode import Storage
        from en.data.preparation.prepare import prepare
    except ImportError as error:
        report.note(f"{FFCV}: skipped: {error}")
        return False
    prepare(read_folders(root / "folder"), root / "jpeg", Storage("jpeg"), workers, skip_corrupt=False)
    return True
