"""One sample as it is stored: a JPEG file without loss, a new one, or pixels."""

import hashlib
import io
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from en.data.decoding import DamagedImage, Picture, UnusableImage, decode_image, read_file, to_rgb
from en.data.ffcv.tables import JPEG, LARGEST_SIDE, RAW
from en.data.ffcv.writer import Encoded
from en.data.jpeg import transcode
from en.data.preparation.oddities import oddities_of
from en.data.preparation.remarks import Checked
from en.data.sources import Sample
from en.data.targets import Stored, Target

FILES = ("jpeg", "as-is")  # kinds of storage that keep JPEG files as such
SILENT = 8  # bytes that libjpeg takes into its buffer, the most on 64 bits


@dataclass(frozen=True)
class Storage:
    """Says how images are stored.

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


@dataclass(frozen=True)
class Held:
    """An image file that has been read, or why it could not be."""

    content: bytes | DamagedImage

    @property
    def in_order(self) -> bool:
        return False

    @property
    def size(self) -> int:
        return len(self.read())

    def read(self) -> bytes:
        if isinstance(self.content, DamagedImage):
            raise self.content
        return self.content


def encode(sample: Sample, storage: Storage, target: Target, classes: int) -> Checked:
    """Encodes one sample as it is stored, or finds what is wrong with its files."""
    try:
        if isinstance(sample.image, np.ndarray):
            content = sample.image.tobytes()
            picture = Picture(to_rgb(Image.fromarray(sample.image)))
        else:
            content = read_file(sample.image) if isinstance(sample.image, Path) else sample.image.read()
            picture = decode_image(content)
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
    oddities = () if isinstance(sample.image, np.ndarray) else oddities_of(sample.name, content)
    return Checked(sample.place, encoded, picture.warning, picture.note, digest, is_as_it_is, counts, oddities)


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
