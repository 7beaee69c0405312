"""Loaders of packages that are kept apart, each in a process of its interpreter: images/s beside ours.

A program on its own, since their environment need not have torch: the standard library and the package alone. After
"ready" it goes through an epoch for each line that it reads, and prints its seconds and the processors' of it.

    python peers.py NAME FOLDER WORKERS SIDE BATCH HEIGHT WIDTH

All read FOLDER/*/*.jpg, of HEIGHT x WIDTH pixels each, shuffled, and show crops of 0.08 to 1 of the area with aspect
ratios of 3/4 to 4/3, resized to SIDE x SIDE, half of them mirrored, in batches of uint8, without the last, smaller one.
"""

import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


class Wanted(NamedTuple):
    """Describes what to load."""

    files: list[str]
    workers: int
    side: int
    batch: int
    height: int
    width: int

    def shuffled(self) -> list[str]:
        return random.sample(self.files, len(self.files))

    def box(self) -> tuple[int, int, int, int]:
        """Draws a crop: top, left, height, width."""
        for _ in range(10):
            area = random.uniform(*SCALE) * self.height * self.width
            ratio = math.exp(random.uniform(*map(math.log, RATIO)))
            height, width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < height <= self.height and 0 < width <= self.width:
                return random.randint(0, self.height - height), random.randint(0, self.width - width), height, width
        side = min(self.height, self.width)
        return (self.height - side) // 2, (self.width - side) // 2, side, side


def tf_data(wanted: Wanted) -> Callable[[], Iterable[Any]]:
    """Makes a pipeline of decode_and_crop_jpeg, bilinear without antialiasing, as TensorFlow's ImageNet recipes are."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    def example(path: Any) -> Any:
        content = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.constant([wanted.height, wanted.width, 3]),
            tf.zeros([1, 0, 4]),
            aspect_ratio_range=RATIO,
            area_range=SCALE,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.resize(tf.image.decode_and_crop_jpeg(content, window, 3), (wanted.side, wanted.side))
        return tf.cast(tf.image.random_flip_left_right(image), tf.uint8)

    data = tf.data.Dataset.from_tensor_slices(wanted.files).shuffle(len(wanted.files))
    data = data.map(example, num_parallel_calls=wanted.workers).batch(wanted.batch, drop_remainder=True).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = wanted.workers
    return partial(iter, data.with_options(options))


def dali(wanted: Wanted) -> Callable[[], Iterable[Any]]:
    """Makes a pipeline on the CPU of image_random_crop and a resize with antialiasing."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=wanted.batch, num_threads=wanted.workers, device_id=None)  # type: ignore[untyped-decorator]
    def pipeline() -> Any:
        content, _ = fn.readers.file(files=wanted.files, random_shuffle=True, initial_fill=len(wanted.files))
        images = fn.decoders.image_random_crop(content, random_area=list(SCALE), random_aspect_ratio=list(RATIO))
        images = fn.resize(images, size=[wanted.side, wanted.side], interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip())

    built = pipeline()
    built.build()
    return lambda: (built.run() for _ in range(len(wanted.files) // wanted.batch))


def spdl(wanted: Wanted) -> Callable[[], Iterable[Any]]:
    """Makes a pipeline of FFmpeg's decoder, crop, scale (bilinear) and hflip, in threads."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    def decode(path: str) -> Any:
        top, left, height, width = wanted.box()
        flip = ",hflip" if random.random() < 0.5 else ""
        steps = f"crop={width}:{height}:{left}:{top},scale={wanted.side}:{wanted.side}:flags=bilinear{flip}"
        return spdl.io.decode_packets(spdl.io.demux_image(path), filter_desc=f"{steps},format=pix_fmts=rgb24")

    def batch(frames: list[Any]) -> Any:
        return spdl.io.to_numpy(spdl.io.convert_frames(frames))

    def epoch() -> Iterable[Any]:
        builder = PipelineBuilder().add_source(wanted.shuffled()).pipe(decode, concurrency=wanted.workers)
        built = builder.aggregate(wanted.batch, drop_last=True).pipe(batch).add_sink(2)
        running = built.build(num_threads=wanted.workers)
        with running.auto_stop():
            yield from running.get_iterator()

    return epoch


def simplejpeg(wanted: Wanted) -> Callable[[], Iterable[Any]]:
    """Makes threads that decode whole images by libjpeg-turbo, cut, and resize by OpenCV's INTER_AREA."""
    import cv2
    import numpy as np
    from simplejpeg import decode_jpeg

    cv2.setNumThreads(1)

    def load(path: str, out: Any) -> None:
        top, left, height, width = wanted.box()
        image = decode_jpeg(Path(path).read_bytes())[top : top + height, left : left + width]
        cv2.resize(image, (wanted.side, wanted.side), dst=out, interpolation=cv2.INTER_AREA)
        if random.random() < 0.5:
            out[:] = out[:, ::-1].copy()

    def epoch() -> Iterable[Any]:
        files = wanted.shuffled()
        with ThreadPoolExecutor(wanted.workers) as pool:
            for first in range(0, len(files) - wanted.batch + 1, wanted.batch):
                out = np.empty((wanted.batch, wanted.side, wanted.side, 3), np.uint8)
                for _ in pool.map(load, files[first : first + wanted.batch], out):
                    pass
                yield out

    return epoch


PEERS = {
    "tf.data, bilinear without antialiasing": tf_data,
    "DALI on the CPU": dali,
    "SPDL, FFmpeg's bilinear": spdl,
    "simplejpeg and OpenCV": simplejpeg,
}


def main() -> None:
    name, folder, *numbers = sys.argv[1:]
    workers, side, batch, height, width = map(int, numbers)
    files = [str(path) for path in sorted(Path(folder).glob("*/*.jpg"))]
    try:
        epoch = PEERS[name](Wanted(files, workers, side, batch, height, width))
    except ImportError as error:
        print(f"no package {error.name}", flush=True)
        return
    print("ready", flush=True)
    for _ in sys.stdin:
        before, started = os.times(), time.perf_counter()
        batches = sum(1 for _ in epoch())
        seconds, after = time.perf_counter() - started, os.times()
        if batches != len(files) // batch:  # SPDL leaves out what it cannot decode, or all without FFmpeg's libraries
            print(f"{batches} of {len(files) // batch} batches", flush=True)
            return
        print(seconds, after.user + after.system - before.user - before.system, flush=True)


if __name__ == "__main__":
    main()
