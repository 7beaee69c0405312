"""Prepare a data set for the FFCV loader: en-prepare SOURCE OUT; also scripts/prepare_data.py.

Writes OUT/train.beton, val.beton or test.beton, those of the splits that SOURCE has, with a name a sample in .names
beside each, dataset.json and classes.json.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from en.errors import Parser, UserError, exit_on_error


def prepare_data() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="a folder with train/CLASS/*.jpg and val/CLASS/*.jpg, or "
                        "with one split alone; a list file with lines `train|val|test path class`; Fashion-MNIST's "
                        "folder; ADE20K, Cityscapes, CamVid or PASCAL VOC 2012 as unpacked; a folder with images/, "
                        "masks/ and classes.txt; WebVision 1.0, CUB-200-2011, ImageNet-V2, -C, -A, -R or Sketch as "
                        "unpacked; webvision-{google,flickr,both,mini}:FOLDER; imagenet-v2:FOLDER; or the word "
                        "fashion-mnist")  # fmt: skip
    parser.add_argument("out", metavar="OUT", type=Path, help="the output folder")
    parser.add_argument("--storage", choices=("jpeg", "as-is", "reencode", "raw"), default="jpeg",
                        help="JPEG files with restart markers, without loss, and others as raw pixels (default); "
                        "the same, but JPEG files as they are; all as new JPEGs; all as raw pixels")  # fmt: skip
    parser.add_argument("--max-side", type=int, help="pixels; scale larger images down (reencode and raw)")
    parser.add_argument("--quality", type=int, default=90, help="JPEG quality of reencode, default 90")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, default one per core")
    parser.add_argument("--skip-corrupt", action="store_true", help="skip damaged files instead of stopping")
    parser.add_argument("--on-warning", choices=("refuse", "skip", "keep"), default="refuse",
                        help="JPEG files that libjpeg warns about: treat as damaged (default), skip, or keep their "
                        "pixels; files with padding before the end marker are always kept")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace the data set in OUT")
    arguments = parser.parse_args()

    if arguments.max_side is not None and (arguments.max_side < 1 or arguments.storage in ("jpeg", "as-is")):
        raise UserError(
            f"--max-side {arguments.max_side}: expected at least 1, together with --storage reencode or raw"
        )
    if not 1 <= arguments.quality <= 100:
        raise UserError(f"--quality {arguments.quality}: expected 1 to 100")
    if arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers}: expected at least 1")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise UserError(f"{arguments.out}: expected an output folder, found a file")
    from en.data.preparation.prepare import Storage, Terminated, prepare
    from en.data.sources import ALL_SPLITS, read_source

    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a file's name may hold any bytes
    signal.signal(signal.SIGTERM, Terminated.stop)
    started = time.monotonic()
    source = read_source(arguments.source)
    storage = Storage(arguments.storage, arguments.max_side, arguments.quality)
    counts = prepare(
        source,
        arguments.out,
        storage,
        arguments.workers,
        arguments.skip_corrupt,
        arguments.on_warning,
        arguments.overwrite,
    )
    uses = {"train": "training", "val": "evaluation", "test": "testing"}
    images = " and ".join(f"{counts[split]} images for {uses[split]}" for split in ALL_SPLITS if split in counts)
    print(
        f"{arguments.out}: {images}, "
        f"{len(source.classes)} classes, {counts['skipped']} skipped, {counts['warnings']} with warnings "
        f"({counts['warnings_kept']} of them kept), {counts['as_they_are']} JPEG files as they are, "
        f"{time.monotonic() - started:.0f} s"
    )


def main() -> None:
    exit_on_error(prepare_data)


if __name__ == "__main__":
    main()
