"""Prepare a data set for the FFCV loader: en-prepare SOURCE OUT; also scripts/prepare_data.py.

Writes OUT/train.beton, val.beton or test.beton, those of the splits that SOURCE has, with a name a sample in .names
beside each, dataset.json and classes.json.
"""

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from en.errors import Parser, UserError, exit_on_error, whole_number

USES = {"train": "training", "val": "evaluation", "test": "testing"}


def prepare_data() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="a folder with train/CLASS/*.jpg and val/CLASS/*.jpg, or "
                        "with one split alone; a list file with lines `train|val|test path class`; Fashion-MNIST's "
                        "folder; ADE20K, Cityscapes, CamVid or PASCAL VOC 2012 as unpacked; a folder with images/, "
                        "masks/ and classes.txt; WebVision 1.0, CUB-200-2011, ImageNet-V2, -C, -A, -R or Sketch as "
                        "unpacked; webvision-{google,flickr,both,mini}:FOLDER; imagenet-v2:FOLDER; the word "
                        "fashion-mnist; or ImageNet and its kin as downloaded: ILSVRC2012's tars, Kaggle's tree, "
                        "parquet shards, webdataset's tars, Tiny-ImageNet, CIFAR")  # fmt: skip
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
    parser.add_argument("--classes", metavar="FILE", type=Path,
                        help="take these classes alone: WordNet ids, one on each line")  # fmt: skip
    parser.add_argument("--val-list", metavar="FILE", type=Path, help="the classes of a flat val folder's images: "
                        "lines `name class`, or a class on each in the order of the sorted names")  # fmt: skip
    parser.add_argument("--labels", choices=("sorted", "devkit"), help="what a class number in a list is: its position "
                        "among the sorted WordNet ids, from 0, or ILSVRC2012_ID, from 1")  # fmt: skip
    parser.add_argument("--form", choices=("folders", "ilsvrc2012", "kaggle", "parquet", "webdataset", "flat-val"),
                        help="which to read where SOURCE holds several, such as archives beside what they were "
                        "unpacked to")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say what there is, and what size and time to expect; "
                        "reads directories and indices alone")  # fmt: skip
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--shard", metavar="I/N", help="prepare the part I of N, from 1 on, for --merge")
    part.add_argument("--merge", metavar="N", type=whole_number(1, 9999), help="make a data set of N shards in OUT")
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
    shard = shard_of(arguments.shard) if arguments.shard else None
    from en.data.preparation.dry_run import dry_run
    from en.data.preparation.encode import Storage
    from en.data.preparation.prepare import Shard, Terminated, prepare
    from en.data.preparation.shards import merge, prepare_shard
    from en.data.sources import Hints, only, read_source

    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a file's name may hold any bytes
    signal.signal(signal.SIGTERM, Terminated.stop)
    started = time.monotonic()
    source = read_source(arguments.source, Hints(arguments.val_list, arguments.labels, arguments.form))
    if arguments.classes is not None:
        source = only(source, arguments.classes)
    if source.form:
        print(f"{arguments.source}: {source.form}")
    storage = Storage(arguments.storage, arguments.max_side, arguments.quality)
    if arguments.dry_run:
        print("\n".join(dry_run(source, storage, arguments.workers)))
        return
    how = (source, arguments.out, storage, arguments.workers, arguments.skip_corrupt, arguments.on_warning)
    if shard:
        counts = prepare_shard(*how, Shard(shard[0] - 1, shard[1]))
        print(f"{arguments.out}: shard {arguments.shard}: {made(counts)}; once all are here: --merge {shard[1]}")
        return
    if arguments.merge:
        counts = merge(*how, arguments.merge, arguments.overwrite)
    else:
        counts = prepare(*how, arguments.overwrite)
    print(
        f"{arguments.out}: {made(counts)}, "
        f"{len(source.classes)} classes, {counts['skipped']} skipped, {counts['warnings']} with warnings "
        f"({counts['warnings_kept']} of them kept), {counts['as_they_are']} JPEG files as they are, "
        f"{time.monotonic() - started:.0f} s"
    )


def made(counts: Mapping[str, int]) -> str:
    """Says how many images of each split there are, of those that a set has."""
    return " and ".join(f"{counts[split]} images for {use}" for split, use in USES.items() if split in counts)


def shard_of(text: str) -> tuple[int, int]:
    """Reads I/N. Raises: UserError."""
    match = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {text}: expected I/N, a part from 1 to N of N, such as 2/4")
    return int(match[1]), int(match[2])


def main() -> None:
    exit_on_error(prepare_data)


if __name__ == "__main__":
    main()
