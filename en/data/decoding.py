"""Decodes an image file to RGB pixels, or finds what is wrong with it; shared by preparation and the folder loader."""

import io
import re
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from en.data.jpeg_kind import unusual_kind
from en.data.png import without_text
from en.machine import package_version

try:
    from en.data.ffcv.kernels import libjpeg_version, read_jpeg
except ImportError:  # ffcv is not installed
    HAS_LIBJPEG_WARNINGS = False
else:
    HAS_LIBJPEG_WARNINGS = True

JPEG_MODES = ("RGB", "L")  # decodable in training as they are
EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
END = re.compile(rb"\xff\xd9")


class UnusableImage(Exception):
    """A file that gives no pixels. One line that says why."""


class DamagedImage(UnusableImage):
    """A file that is not an intact image."""


class UnsupportedImage(UnusableImage):
    """A file that may well be an intact image, but of a kind that is not decoded here."""


@dataclass(frozen=True)
class Picture:
    """One decoded image file.

    Attributes:
        image: the pixels, mode RGB.
        jpeg: the file itself without padding, if it is an RGB or grey JPEG that libjpeg decodes without a warning (none
            is seen where FFCV's library is not installed), or empty.
        warning: libjpeg's warning that some of these pixels are wrong; empty for an intact image.
        note: what is odd about the file but changes no pixel; mostly empty.
    """

    image: Image.Image
    jpeg: bytes = b""
    warning: str = ""
    note: str = ""


def read_file(path: Path) -> bytes:
    """Reads a file. Raises: DamagedImage for one that cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DamagedImage("not a file")
        return path.read_bytes()
    except OSError as error:
        raise DamagedImage(f"cannot be read: {error.strerror}") from error


# Preparation records it as a note; a loader, in whose threads no filter can be set, would tell of it at each decode.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode_image(content: bytes) -> Picture:
    """Decodes the first frame of an image file and ignores its EXIF orientation, as is usual for ImageNet.

    Where FFCV's library is installed, JPEG files are decoded by libjpeg and its warnings reported; else by Pillow,
    which hides them. So it does for the few kinds of JPEG that Pillow's libjpeg knows and FFCV's does not.

    Raises: DamagedImage; UnsupportedImage for what is not decoded, or not as RGB, although it may be whole.
    """
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            picture = decode(content)
    except UnusableImage:
        raise
    except Exception as error:  # Pillow raises many kinds of error for damaged files
        raise refusal(content, error) from error
    if not caught:
        return picture
    note = "; ".join(filter(None, [picture.note, *dict.fromkeys(" ".join(str(one.message).split()) for one in caught)]))
    return Picture(picture.image, picture.jpeg, picture.warning, note)


def refusal(content: bytes, error: Exception) -> UnusableImage:
    """Makes of Pillow's error what it says of the file."""
    if isinstance(error, UnusableImage):
        return error
    unknown, kind = isinstance(error, UnidentifiedImageError), unusual_kind(content)
    reason = words(error)
    if isinstance(error, Image.DecompressionBombError):
        return UnsupportedImage(reason)
    if kind and "truncated" not in reason:
        return UnsupportedImage(f"{kind}, which Pillow does not decode" + ("" if unknown else f": {reason}"))
    if unknown:
        reason = "not an image that Pillow knows" if content else "empty file"
    return DamagedImage(reason)


def words(error: Exception) -> str:
    """Puts an error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def decode(content: bytes) -> Picture:
    """Decodes as `decode_image` does, in any thread; warnings and errors are Pillow's own."""
    content = without_text(content)
    image = Image.open(io.BytesIO(content))
    if HAS_LIBJPEG_WARNINGS and image.format in ("JPEG", "MPO") and image.mode in (*JPEG_MODES, "CMYK"):
        return decode_jpeg(content, image)
    if image.format in ("JPEG", "MPO") and image.mode in JPEG_MODES and not unusual_kind(content):
        return Picture(to_rgb(image), content)
    if image.format == "PNG":  # Pillow's decoder ignores the checksums
        Image.open(io.BytesIO(content)).verify()
    return Picture(to_rgb(image))


def decode_jpeg(content: bytes, image: Image.Image) -> Picture:
    shape = image.height, image.width, image.mode == "CMYK"
    pixels, complaint, is_error = read_jpeg(content, *shape)
    note = ""
    if is_error:
        # No proof of damage: it may be too old for the file's kind. Pillow's own libjpeg raises where it is one.
        kind = f"{unusual_kind(content)} ({complaint})".strip()
        return Picture(to_rgb(image), note=f"{kind}: decoded by Pillow, which hides libjpeg's warnings")
    if complaint:
        try:
            image.load()
        except Exception as error:  # of a kind that is decoded: no reason but damage
            raise DamagedImage(words(error)) from error
        padding = padding_of(content, shape, complaint)
        if padding is None:
            return Picture(to_rgb(image), warning=complaint)
        note = f"{len(padding)} bytes of padding before its end"
        content = content[: padding.start] + content[padding.stop :]
    if image.mode not in JPEG_MODES:
        return Picture(to_rgb(image), note=note)
    return Picture(Image.fromarray(pixels), content, note=note)


def padding_of(content: bytes, shape: tuple[int, int, bool], complaint: str) -> range | None:
    """Finds the padding before a JPEG file's end marker, if that is all that libjpeg complains about.

    libjpeg also reports "extraneous bytes before marker 0xd9" when the decoder lost its place in a damaged scan. Bytes
    count as padding if they are one byte repeated (zero if there is only one), if the file decodes without a warning
    once they are cut, and if it does not once one byte more is cut: the decoder stopped just where the padding begins.
    Our choice.

    Args:
        shape: height, width, and whether the file is CMYK.
    Returns: the padding's range of bytes, or None.
    """
    extraneous = EXTRANEOUS.search(complaint)
    if extraneous is None:
        return None
    for match in END.finditer(content):
        end = match.start()
        filler = content[end - 1 : end]
        first = len(content[:end].rstrip(filler))
        if end - first < int(extraneous[1]):
            continue
        for start in (first, first + 1):  # the scan's last byte may equal the filler, as in ff 00
            if (end - start > 1 or filler == b"\0") and stops_at(start, end, content, shape):
                return range(start, end)
    return None


def stops_at(start: int, end: int, content: bytes, shape: tuple[int, int, bool]) -> bool:
    """Tells whether a JPEG decodes without a warning if bytes start to end are cut, but not if one more byte is."""
    head, tail = content[:start], content[end:]
    return not read_jpeg(head + tail, *shape).complaint and read_jpeg(head[:-1] + tail, *shape).complaint != ""


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to RGB; drops transparency, scales 16 bits to 8.

    Raises: UnsupportedImage for modes whose range of values is unknown.
    """
    if image.mode in ("I", "F", "LAB"):
        raise UnsupportedImage(f"mode {image.mode}: expected a mode of known range that converts to RGB")
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.rint(values * (255 / 65_535)).astype(np.uint8)).convert("RGB")
    if image.mode in ("La", "RGBa", "P", "PA"):  # premultiplied, or with transparency in the palette
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return image.convert("RGB")


def pillows() -> dict[str, str | None]:
    """Names Pillow and its libjpeg, with versions; None: unknown."""
    return {"pillow": package_version("pillow"), "pillow_libjpeg_turbo": features.version("libjpeg_turbo")}


def decoders() -> dict[str, str | None]:
    """Names what decodes image files here, each with its version; None: not installed, or unknown."""
    return pillows() | {"libjpeg_turbo": libjpeg_version() if HAS_LIBJPEG_WARNINGS else None}
