"""An image file made into RGB pixels, or what is wrong with it: the same eyes for preparation and for the folder loader."""

import io
import re
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

try:
    from en.data.ffcv.kernels import read_jpeg
except ImportError:  # no ffcv here
    HEARS_LIBJPEG = False
else:
    HEARS_LIBJPEG = True

JPEG_MODES = ("RGB", "L")  # that training can decode as they are
LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
END = re.compile(rb"\xff\xd9")


class DamagedImage(Exception):
    """A file that is not a whole image. One line that says why."""


@dataclass(frozen=True)
class Picture:
    """One decoded image file.

    Attributes:
        image: its pixels, mode RGB.
        jpeg: the file itself, without padding, where it is an RGB or grey JPEG that libjpeg decodes without a word; else empty.
        warning: what libjpeg said while it made these pixels, some of which are wrong; empty for a whole image.
        note: what is odd about the file and changes no pixel; mostly empty.
    """

    image: Image.Image
    jpeg: bytes = b""
    warning: str = ""
    note: str = ""


def read_file(path: Path) -> bytes:
    """A file's content. Raises: DamagedImage for one that cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DamagedImage("not a file")
        return path.read_bytes()
    except OSError as error:
        raise DamagedImage(f"cannot be read: {error.strerror}") from error


def decode_image(content: bytes) -> Picture:
    """The first frame of an image file, with its EXIF orientation left alone, as is usual for ImageNet.

    JPEG files are decoded by libjpeg with its warnings heard, where FFCV's library is installed; else by Pillow, which keeps
    them to itself.

    Raises: DamagedImage for what cannot be decoded, or not as RGB.
    """
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            picture = decode(content)
    except UnidentifiedImageError as error:
        raise DamagedImage("not an image" if content else "empty file") from error
    except Exception as error:  # Pillow raises errors of many kinds for damaged files
        raise DamagedImage(" ".join(str(error).split()) or type(error).__name__) from error
    if not said:
        return picture
    note = "; ".join(filter(None, [picture.note, *dict.fromkeys(" ".join(str(one.message).split()) for one in said)]))
    return Picture(picture.image, picture.jpeg, picture.warning, note)


def decode(content: bytes) -> Picture:
    image = Image.open(io.BytesIO(content))
    if HEARS_LIBJPEG and image.format in ("JPEG", "MPO") and image.mode in (*JPEG_MODES, "CMYK"):
        return decode_jpeg(content, image)
    if image.format == "PNG":  # Pillow's decoder passes over the checksums
        Image.open(io.BytesIO(content)).verify()
    return Picture(to_rgb(image))


def decode_jpeg(content: bytes, image: Image.Image) -> Picture:
    shape = image.height, image.width, image.mode == "CMYK"
    pixels, complaint = read_jpeg(content, *shape)
    note = ""
    if complaint:
        image.load()  # raises, where it is not a warning but an error
        padding = padding_of(content, shape, complaint)
        if padding is None:
            return Picture(to_rgb(image), warning=complaint)
        note = f"{len(padding)} bytes of padding before its end"
        content = content[: padding.start] + content[padding.stop :]
    if image.mode not in JPEG_MODES:
        return Picture(to_rgb(image), note=note)
    return Picture(Image.fromarray(pixels), content, note=note)


def padding_of(content: bytes, shape: tuple[int, int, bool], complaint: str) -> range | None:
    """Where a JPEG file that libjpeg complains of has padding before its end marker, if that is all that is wrong with it.

    "Extraneous bytes before marker 0xd9" is also said of what a decoder leaves that lost its step in a damaged scan. It is
    padding when it is one byte repeated (zero, where it is a single one), when the file without it decodes in silence, and
    when it does not with one byte less: the decoder stopped just where the padding begins. Our choice.

    Args:
        shape: height, width, and whether the file is CMYK.
    """
    said = LEFT_OVER.search(complaint)
    if said is None:
        return None
    for match in END.finditer(content):
        end = match.start()
        filler = content[end - 1 : end]
        first = len(content[:end].rstrip(filler))
        if end - first < int(said[1]):
            continue
        for start in (first, first + 1):  # the scan's own last byte may be the same, as in the pair ff 00
            if (end - start > 1 or filler == b"\0") and stops_at(start, end, content, shape):
                return range(start, end)
    return None


def stops_at(start: int, end: int, content: bytes, shape: tuple[int, int, bool]) -> bool:
    """Whether a JPEG file decodes in silence without its bytes from start to end, and not with one byte less."""
    head, tail = content[:start], content[end:]
    return not read_jpeg(head + tail, *shape)[1] and read_jpeg(head[:-1] + tail, *shape)[1] != ""


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB; transparency is dropped, 16 bits are scaled to 8.

    Raises: DamagedImage for modes whose range of values is not known.
    """
    if image.mode in ("I", "F", "LAB"):
        raise DamagedImage(f"mode {image.mode}: expected one that has a known range and becomes RGB")
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.rint(values * (255 / 65_535)).astype(np.uint8)).convert("RGB")
    if image.mode in ("La", "RGBa", "P", "PA"):  # multiplied by their transparency, or with colours that carry it
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return image.convert("RGB")
