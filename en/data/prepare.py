"""A source of images made into train.beton, val.beton and classes.json."""

import io
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from en.data.beton import JPEG, RAW, BetonFile, Encoded, write_beton
from en.data.kernels import jpeg_complaint
from en.data.sampling import centre_boxes
from en.data.sources import SPLITS, Sample, Source
from en.errors import RunError, UserError
from en.progress import Progress

STORAGES = ("jpeg", "reencode", "raw")
HARMLESS = "extraneous bytes before marker"  # libjpeg's warning about padding, which changes no pixel
LARGEST_SIDE = 65_535  # FFCV keeps sizes in 16 bits
CHUNK = 16


@dataclass(frozen=True)
class Storage:
    """How images are stored.

    Attributes:
        kind: jpeg keeps RGB and grey JPEG files byte for byte and all others as raw pixels, so that nothing is lost;
            reencode makes every image a JPEG; raw stores the pixels of every image.
        max_side: pixels; larger images are scaled down (reencode and raw only); None for no limit.
        quality: JPEG quality of re-encoded images, 1 to 100.
    """

    kind: str = "jpeg"
    max_side: int | None = None
    quality: int = 90


@dataclass(frozen=True)
class Damaged:
    """A file that is not a whole image, and why."""

    name: str
    reason: str


def prepare(source: Source, out: Path, storage: Storage, workers: int, skip_corrupt: bool) -> dict[str, int]:
    """Writes out/train.beton, out/val.beton, out/classes.json and out/dataset.json, all or none of them.

    Every image is decoded once to be checked, and every stored sample once more after writing. Grey and CMYK images become
    RGB. Samples keep the source's order, so that the same source gives the same bytes.

    Returns: how many samples were stored, by split, and under "skipped" how many were left out.
    Raises: UserError that lists every damaged file, unless skip_corrupt leaves them out; RunError for a worker that died.
    """
    partial_files = {split: out / f"{split}.beton.partial" for split in SPLITS}
    damaged: list[Damaged] = []
    counts: dict[str, int] = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for split, path in partial_files.items():
            samples = source.splits[split]
            encoded = encode_all(samples, storage, workers, f"{source.name}: {split}", damaged)
            counts[split] = write_beton(path, encoded, at_most=len(samples))
        counts["skipped"] = len(damaged)
        if damaged and not skip_corrupt:
            listed = (f"{file.name}: {file.reason}" for file in damaged)
            raise UserError(f"{len(damaged)} files are not whole images; --skip-corrupt leaves them out:", *listed)
        for split, path in partial_files.items():
            if not counts[split]:
                raise UserError(f"{source.name}: expected images for {split}, found none that is whole")
            verify(path, workers)
        for split, path in partial_files.items():
            path.rename(out / f"{split}.beton")
        write_json(out / "classes.json", source.classes)
        write_json(out / "dataset.json", {"name": source.name, "storage": asdict(storage), **counts})
    except BrokenProcessPool as error:
        raise RunError(f"{source.name}: a worker process died, perhaps for want of memory; nothing was written") from error
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror or error}") from error
    finally:
        for path in partial_files.values():
            if path.parent.is_dir():
                path.unlink(missing_ok=True)
    for file in damaged:
        print(f"left out {file.name}: {file.reason}")
    return counts


def encode_all(samples: list[Sample], storage: Storage, workers: int, label: str, damaged: list[Damaged]) -> Iterator[Encoded]:
    """The samples as they are to be stored, in order, encoded by several processes; damaged ones go to the list."""
    with ProcessPoolExecutor(workers) as pool, Progress(label, len(samples)) as progress:
        for outcome in pool.map(partial(encode, storage=storage), samples, chunksize=CHUNK):
            progress.advance()
            if isinstance(outcome, Damaged):
                damaged.append(outcome)
            else:
                yield outcome


def encode(sample: Sample, storage: Storage) -> Encoded | Damaged:
    """One sample in its stored form, or what is wrong with its file."""
    content = b""
    image: Image.Image
    try:
        if isinstance(sample.image, Path):
            content = sample.image.read_bytes()
            image = Image.open(io.BytesIO(content))
            image.load()
        else:
            image = Image.fromarray(sample.image)
    except UnidentifiedImageError:
        return Damaged(sample.name, "not an image" if content else "empty file")
    except Exception as error:  # Pillow raises errors of many kinds for damaged files
        return Damaged(sample.name, str(error) or type(error).__name__)
    if max(image.size) > LARGEST_SIDE:
        return Damaged(sample.name, f"{image.width} x {image.height} pixels: expected at most {LARGEST_SIDE}")
    is_jpeg = image.format == "JPEG" and image.mode in ("RGB", "L")
    complaint = jpeg_complaint(content, image.height, image.width) if is_jpeg else ""
    if complaint and HARMLESS not in complaint:
        return Damaged(sample.name, complaint)
    if storage.kind == "jpeg" and is_jpeg and not complaint:
        return Encoded(JPEG, image.width, image.height, content, sample.label)
    pixels = scaled(image.convert("RGB"), storage.max_side)
    if storage.kind != "reencode":
        return Encoded(RAW, pixels.width, pixels.height, pixels.tobytes(), sample.label)
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG", quality=storage.quality)
    return Encoded(JPEG, pixels.width, pixels.height, buffer.getvalue(), sample.label)


def scaled(image: Image.Image, max_side: int | None) -> Image.Image:
    """The image, scaled down so that no side is longer than max_side pixels."""
    if max_side is None or max(image.size) <= max_side:
        return image
    share = max_side / max(image.size)
    size = max(1, round(image.width * share)), max(1, round(image.height * share))
    return image.resize(size, Image.Resampling.LANCZOS)


def verify(path: Path, workers: int) -> None:
    """Decodes every sample of a .beton file as training would. Raises RunError that names the first that fails."""
    file = BetonFile(path)
    boxes = centre_boxes(file.heights, file.widths, 1.0)

    def decode(part: range) -> int:
        scratch, out = np.empty(file.largest(), np.uint8), np.empty((8, 8, 3), np.uint8)
        for sample in part:
            file.decode(sample, tuple(boxes[sample].tolist()), out, scratch)
        return len(part)

    parts = [range(start, min(start + 256, len(file))) for start in range(0, len(file), 256)]
    with ThreadPoolExecutor(workers) as pool, Progress(f"checking {path.stem}", len(file)) as progress:
        for count in pool.map(decode, parts):
            progress.advance(count)


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
