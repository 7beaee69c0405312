"""JPEG files to crops of 224 pixels on one thread: our decoder against libjpeg's whole image and OpenCV's resize."""

import itertools
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from en.benchmarks.photographs import KINDS, Kind, encode, picture
from en.benchmarks.timing import Measured, hardware, interleaved, median, show, write
from en.data import jpeg
from en.data.crops import CentreCrop, Crop, RandomResizedCrop
from en.data.ffcv.kernels import decode_jpeg, scale

SIZE = (224, 224)
SEED = 1
RATIO = (3 / 4, 4 / 3)
TRAINING = RandomResizedCrop((0.08, 1.0), RATIO, 0.5)
SMALL, WHOLE = (RandomResizedCrop((share, share), RATIO, 0.5) for share in (0.08, 1.0))
EVALUATION = CentreCrop(224 / 256)
BEFORE = "whole image by libjpeg, INTER_AREA"
INTERVALS = {"markers every 4 MCUs": 4, "markers every 8 MCUs": 8, "a marker each row": 0}


def benchmark_decode(images: int, photos: Path | None, rounds: int, out: Path | None) -> None:
    """Prints milliseconds an image and ratios to BEFORE, by kind of file and by crop.

    Args:
        images: of each kind.
        photos: a folder of JPEGs, of which mosaics are made; None: noise with the spectrum of photographs.
    """
    where = hardware("cpu", 1)
    print(f"{where}; load {os.getloadavg()[0]:.1f}; {'noise' if photos is None else photos}")
    report: dict[str, list[Measured]] = {}
    for kind in KINDS:
        files = [encode(picture(photos, index, kind), kind) for index in range(images)]
        seconds = interleaved(cases(files, kind), rounds, str(kind), warmups=1)
        rows = [{"way": name, "ms an image": 1000 * median(taken) / images} for name, taken in seconds.items()]
        for row in rows:  # the median of the ratios of each round
            way = str(row["way"])
            pairs = zip(seconds[way], seconds[BEFORE + way[way.index(":") :]], strict=True)
            row["/ before"] = median([ours / before for ours, before in pairs])
        report[str(kind)] = rows
        size = sum(map(len, files)) / images / 1000
        show(f"{kind}, {images} files of {size:.0f} kB; load {os.getloadavg()[0]:.1f}", rows)
    write(out, {"hardware": where, "images": images, "photos": str(photos), "rows": report})


def cases(files: list[bytes], kind: Kind) -> dict[str, Callable[[], None]]:
    """Makes what decodes all files once, by way and crop; each time at other crops, the same for every way."""
    stored = {"as it is": files}
    for name, interval in INTERVALS.items():
        stored[name] = [jpeg.transcode(file, interval) or file for file in files]
    made: dict[str, Callable[[], None]] = {}
    out = torch.zeros((len(files), *SIZE, 3), dtype=torch.uint8)  # new pages cost time: the loader too uses them again
    for crop_name, crop in (("training", TRAINING), ("scale 0.08", SMALL), ("scale 1", WHOLE), ("centre", EVALUATION)):
        made[f"{BEFORE}: {crop_name}"] = partial(decode_before, files, kind, crop, itertools.count())
        for name, contents in stored.items():
            made[f"{name}: {crop_name}"] = partial(decode_now, contents, kind, crop, itertools.count(), out)
    return made


def boxes_of(crop: Crop, count: int, kind: Kind, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    heights, widths = np.full(count, kind.height), np.full(count, kind.width)
    view = crop(SEED, epoch, np.arange(count), heights, widths, SIZE)
    return view.boxes, view.flips


def decode_before(files: list[bytes], kind: Kind, crop: Crop, epochs: "itertools.count[int]") -> None:
    """Decodes as the loader of FFCV's files does, one image after the other."""
    boxes, flips = boxes_of(crop, len(files), kind, next(epochs))
    scratch = np.empty(3 * kind.height * kind.width, np.uint8)
    out = np.empty((*SIZE, 3), np.uint8)
    for file, box, flip in zip(files, boxes.tolist(), flips.tolist(), strict=True):
        address = np.frombuffer(file, np.uint8).ctypes.data
        decode_jpeg(address, len(file), kind.height, kind.width, scratch)
        scale(scratch.ctypes.data, kind.height, kind.width, tuple(box), out)
        if flip:
            out[:] = out[:, ::-1].copy()


def decode_now(files: list[bytes], kind: Kind, crop: Crop, epochs: "itertools.count[int]", out: Tensor) -> None:
    """Decodes a batch in one call."""
    count = len(files)
    boxes, flips = boxes_of(crop, count, kind, next(epochs))
    arrays = [np.frombuffer(file, np.uint8) for file in files]
    addresses = np.array([array.ctypes.data for array in arrays], np.uint64)
    sides = np.full(count, kind.height), np.full(count, kind.width)
    images = jpeg.Images(addresses, np.array([len(file) for file in files]), *sides, np.zeros(count, bool))
    refused = jpeg.decode(images, jpeg.crop_resize(boxes, flips, SIZE), out)
    assert not refused, refused
