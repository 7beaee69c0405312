"""Turns a source of images into a .beton file and a file of names a split, dataset.json and classes.json."""

import ctypes
import hashlib
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

import numpy as np
import torch
from PIL import Image

from en.data.decoding import Picture, UnusableImage, decode_image, read_file, to_rgb
from en.data.ffcv.file import JPEG, RAW, BetonFile, Encoded, write_beton
from en.data.ffcv.names import SUFFIX, write_names
from en.data.ffcv.tables import LARGEST_SIDE
from en.data.jpeg import library_or_none, transcode
from en.data.preparation.out_folder import OutFolder
from en.data.preparation.remarks import Checked, Remarks, Tally
from en.data.showing import rows_of
from en.data.sources import Sample, Source
from en.data.targets import Stored, Target
from en.data.views import View
from en.errors import RunError, Stopped, UserError, listed, warn
from en.progress import Progress

FILES = ("jpeg", "as-is")  # kinds of storage that keep JPEG files as such
SILENT = 8  # bytes that libjpeg takes into its buffer, the most on 64 bits
CHUNK = 16
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Storage:
    """How images are stored.

    Attributes:
        kind: jpeg keeps RGB and grey JPEG files, if libjpeg decodes them, and all others as raw pixels, so that nothing
            is lost. Sequential files are written anew with restart markers and optimized tables, with the same
            coefficients, which is verified; others, such as progressive ones, stay byte for byte. as-is keeps all those
            files byte for byte (except padding before their end); reencode makes every image a JPEG; raw stores every
            image's pixels.
        max_side: pixels; larger images are scaled down (reencode and raw only); None for no limit.
        quality: JPEG quality of re-encoded images, 1 to 100.
    """

    kind: str = "jpeg"
    max_side: int | None = None
    quality: int = 90


class Terminated(Stopped):
    """SIGTERM ended the preparation before any file was put in place."""

    exit_code = 128 + signal.SIGTERM

    @classmethod
    def stop(cls, number: int, frame: FrameType | None) -> NoReturn:
        """Handles the signal."""
        raise cls("terminated")


def prepare(
    source: Source,
    out: Path,
    storage: Storage,
    workers: int,
    skip_corrupt: bool,
    on_warning: str = "refuse",
    overwrite: bool = False,
) -> dict[str, int]:
    """Writes out/SPLIT.beton and out/SPLIT.names of each split, out/dataset.json and out/classes.json: all or none.

    Decodes every image once to check it, and reads every stored sample again after writing. Grey and CMYK images become
    RGB. Samples keep the source's order, so that the same source gives the same bytes.

    Args:
        skip_corrupt: whether to skip files that are damaged or of a kind that is not decoded.
        on_warning: how to treat files that libjpeg decodes with a warning, other than about padding before their end,
            which changes no pixel: refuse counts them as damaged, skip omits them, keep stores their pixels.
        overwrite: whether to replace a data set in `out`.
    Returns: how many samples were stored, by split; under "skipped" how many were skipped, under "warnings" how many
        files had a warning, under "warnings_kept" how many of these were stored, under "in_both" how many of val are,
        byte for byte, in train too, of which it warns; under "as_they_are" how many are JPEG files byte for byte.
    Raises: UserError that lists every file that is damaged or not decoded, unless skip_corrupt is set, and for an `out`
        that is in use or holds a data set; RunError if a worker died.
    """
    folder, remarks = OutFolder(out), Remarks(on_warning, skip_corrupt)
    library_or_none()  # compiled before the workers ask for it
    try:
        with folder.locked(overwrite):
            names = {split: write_split(source, split, folder, storage, workers, remarks) for split in source.splits}
            remarks.refuse()
            for split in source.splits:
                if not names[split]:
                    raise UserError(f"{source.name}: expected images for {split}, found none that is intact")
                digest = verify(folder.partial(f"{split}.beton"), source.target, workers)
                write_names(folder.partial(f"{split}{SUFFIX}"), digest, names[split])
            counts = {split: len(own) for split, own in names.items()}
            counts |= {"skipped": len(remarks.skipped), "warnings": remarks.warned, "warnings_kept": len(remarks.kept)}
            counts |= {"in_both": len(remarks.in_both), "as_they_are": remarks.as_they_are}
            described = {"name": source.name, "storage": asdict(storage), "target": source.target.name, **counts}
            described |= {"palette": source.palette} if source.palette else {}
            described |= {"cropped": True} if source.cropped else {}
            if remarks.tallies:
                described["maps"] = {split: tally.described() for split, tally in remarks.tallies.items()}
            folder.write_json("dataset.json", described)
            folder.write_json("classes.json", source.classes)
            folder.put_in_place()
    except BrokenProcessPool as error:
        raise RunError(f"{source.name}: a worker process died, perhaps out of memory; nothing was written") from error
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror or error}") from error
    for what, lines in (("skipped", remarks.skipped), ("kept", remarks.kept)):
        for line in lines:
            print(f"{what} {line}")
    for line in table_of(remarks.tallies, source.classes):
        print(line)
    if remarks.in_both:
        others = sum(len(own) for split, own in names.items() if split != "train")
        warn(
            f"{source.name}: {len(remarks.in_both)} of {others} images for evaluation are among those for "
            f"training, so that scores flatter: {listed(remarks.in_both, 3)}"
        )
    return counts


def table_of(tallies: dict[str, Tally], classes: list[str]) -> Iterator[str]:
    """Lists for people what the maps of the splits hold: of the pixels that count each class, of all those that do not.

    Warns of classes that training has no pixel of.
    """
    if not tallies:
        return
    width = max(map(len, [*classes, "does not count"]))
    yield "  ".join(["class".ljust(width), *(f"{split:>5} %" for split in tallies)])
    shares = [100 * tally.counts[:-1] / max(1, tally.counts[:-1].sum()) for tally in tallies.values()]
    for number, name in enumerate(classes):
        yield "  ".join([name.ljust(width), *(f"{share[number]:7.3f}" for share in shares)])
    yield "  ".join(["does not count".ljust(width), *(f"{100 * tally.ignored:7.3f}" for tally in tallies.values())])
    for split, tally in tallies.items():
        if tally.all_ignored:
            yield f"{split}: {tally.all_ignored} maps of which no pixel counts"
    trained = tallies["train"].counts[:-1] if "train" in tallies else np.ones(len(classes))
    lacking = [name for name, count in zip(classes, trained, strict=True) if not count]
    if lacking:
        warn(f"{len(lacking)} of {len(classes)} classes on no pixel for training: {listed(lacking)}")


def write_split(
    source: Source, split: str, folder: OutFolder, storage: Storage, workers: int, remarks: Remarks
) -> list[str]:
    """Writes a split's .beton file under its partial name. Returns: the names of its samples."""
    samples, names = source.splits[split], list[str]()
    with closing(encode_all(source, split, storage, workers, remarks, names)) as encoded:
        write_beton(folder.partial(f"{split}.beton"), encoded, len(samples), source.target.field)
    return names


def encode_all(
    source: Source, split: str, storage: Storage, workers: int, remarks: Remarks, names: list[str]
) -> Generator[Encoded, None, None]:
    """Encodes a split's samples in several processes and yields those to store, in order.

    Notes remarks on files, and the names of what is stored.
    """
    samples = source.splits[split]
    context = multiprocessing.get_context("fork")
    encoding = partial(encode, storage=storage, target=source.target, classes=len(source.classes))
    with (
        ProcessPoolExecutor(workers, context, end_with_parent, (os.getpid(),)) as pool,
        Progress(f"{source.name}: {split}", len(samples)) as progress,
    ):
        for sample, checked in zip(samples, pool.map(encoding, samples, chunksize=CHUNK), strict=True):
            progress.advance()
            if remarks.accept(checked, split) and checked.encoded is not None:
                names.append(sample.name)
                yield checked.encoded


def end_with_parent(parent: int) -> None:
    """Sets up a worker: it leaves a signal that stops preparation to the parent, and dies when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # the parent died before prctl


def encode(sample: Sample, storage: Storage, target: Target, classes: int) -> Checked:
    """Encodes one sample as it is stored, or finds what is wrong with its files."""
    try:
        if isinstance(sample.image, Path):
            content = read_file(sample.image)
            picture = decode_image(content)
        else:
            content = sample.image.tobytes()
            picture = Picture(to_rgb(Image.fromarray(sample.image)))
        kept = target.read(sample.target, classes, (picture.image.height, picture.image.width))
    except UnusableImage as error:
        return Checked(sample.place, None, str(error))
    image = picture.image
    if max(image.size) > LARGEST_SIDE:
        return Checked(sample.place, None, f"{image.width} x {image.height} pixels: expected at most {LARGEST_SIDE}")
    digest = hashlib.sha256(content).digest()
    picture, is_as_it_is = transcoded(picture, storage)
    encoded = encode_picture(picture, storage, kept)
    encoded = encoded._replace(target=target.scaled(kept, (encoded.height, encoded.width)))
    counts = target.counts(encoded.target, classes)
    return Checked(sample.place, encoded, picture.warning, picture.note, digest, is_as_it_is, counts)


def transcoded(picture: Picture, storage: Storage) -> tuple[Picture, bool]:
    """Reads all codes of a picture's JPEG file, and writes it anew, without loss, where it is stored so.

    A file that libjpeg decodes without a warning and our decoder finds damaged has a warning then.

    Returns: the picture, and whether its file is stored as it is.
    """
    if not picture.jpeg:
        return picture, False
    try:
        written = transcode_padded(picture.jpeg)
    except ValueError as error:
        return replace(picture, jpeg=b"", warning=str(error)), False
    if storage.kind not in FILES:
        return picture, False
    if written is None or storage.kind == "as-is":
        return picture, True
    return replace(picture, jpeg=written), False


def transcode_padded(content: bytes) -> bytes | None:
    """Transcodes a JPEG file without the few bytes of padding at its scan's end that libjpeg reads in silence.

    They are one byte repeated, zero if there is only one. More of it libjpeg reports: see `padding_of`.
    Raises: ValueError for a damaged file, with what is wrong.
    """
    try:
        return transcode(content)
    except ValueError as error:
        end = content.rfind(b"\xff\xd9")
        for count in range(1, min(SILENT, end) + 1):
            filler = content[end - count : end]
            if len(set(filler)) == 1 and (count > 1 or filler == b"\0"):
                with suppress(ValueError):
                    return transcode(content[: end - count] + content[end:])
        raise error


def encode_picture(picture: Picture, storage: Storage, target: Stored) -> Encoded:
    if storage.kind in FILES and picture.jpeg:
        return Encoded(JPEG, *picture.image.size, picture.jpeg, target)
    pixels = scaled(picture.image, storage.max_side)
    if storage.kind != "reencode":
        return Encoded(RAW, *pixels.size, pixels.tobytes(), target)
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG", quality=storage.quality)
    return Encoded(JPEG, *pixels.size, buffer.getvalue(), target)


def scaled(image: Image.Image, max_side: int | None) -> Image.Image:
    """Scales an image down so that no side is longer than max_side pixels."""
    if max_side is None or max(image.size) <= max_side:
        return image
    share = max_side / max(image.size)
    size = max(1, round(image.width * share)), max(1, round(image.height * share))
    return image.resize(size, Image.Resampling.LANCZOS)


def verify(path: Path, target: Target, workers: int) -> str:
    """Reads every sample of a .beton file as training does: its checksum, and the last pixels, down to the right.

    All codes of its bytes were judged before they were written.

    Returns: the file's digest.
    Raises: RunError that names the first sample that fails.
    """
    file = BetonFile(path)
    height, width = np.minimum(file.heights, 8), np.minimum(file.widths, 8)
    boxes = np.stack([file.heights - height, file.widths - width, height, width], axis=1)
    corner = View(boxes, np.zeros(len(file), bool), (8, 8))

    def decode(part: range) -> int:
        samples, rows = np.array(part), slice(part.start, part.stop)
        refused = file.decode(
            samples, rows_of(corner, rows), torch.empty((len(part), *corner.size, 3), dtype=torch.uint8)
        )
        if refused:
            raise RunError(refused[min(refused)])
        for sample in part:
            try:
                target.cut(file.stored(sample), corner, sample)
            except UnusableImage as error:
                raise RunError(f"{path}: sample {sample} is damaged: {error}") from error
        return len(part)

    parts = [range(start, min(start + 256, len(file))) for start in range(0, len(file), 256)]
    with ThreadPoolExecutor(workers) as pool, Progress(f"checking {path.stem}", len(file)) as progress:
        for count in pool.map(decode, parts):
            progress.advance(count)
    return file.digest
