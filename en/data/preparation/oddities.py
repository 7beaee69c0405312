"""Oddities of image files of web sets, ImageNet among them: counted, so that one sees that it was handled."""

import warnings

from PIL import Image

from en.data.jpeg_kind import COMMON, UNUSUAL, segments

EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
APP1 = 0xE1
ORIENTATION = 0x0112
JPEG_NAMES = (".jpg", ".jpeg")
COMPONENTS = {1: "grey", 4: "CMYK"}


def oddities_of(name: str, content: bytes) -> tuple[str, ...]:
    """Names what is odd about an image file, by its header alone; empty for most.

    Args:
        name: the file's, for its suffix.
    """
    if not content.startswith(b"\xff\xd8"):
        kind = "PNG" if content.startswith(b"\x89PNG") else "no JPEG"
        return (f"{kind} named JPEG",) if name.lower().endswith(JPEG_NAMES) else ()
    found = []
    for marker, segment in segments(content):
        if marker in COMMON or marker in UNUSUAL:
            found += in_frame(segment)
        elif marker == APP1 and segment.startswith(EXIF):
            found += in_exif(segment)
        elif marker == APP1 and segment.startswith(XMP):
            found += in_xmp(segment[len(XMP) :])
    return tuple(dict.fromkeys(found))


def in_frame(frame: bytes) -> list[str]:
    """Looks at the components of a JPEG file's frame, each of three bytes: number, sampling, table."""
    components = frame[5] if len(frame) > 5 else 0
    first = frame[7] if components == 3 and len(frame) > 7 else 0
    found = [COMPONENTS[components]] if components in COMPONENTS else []
    return found + (["4:1:1"] if first == 0x41 else [])


def in_exif(segment: bytes) -> list[str]:
    exif = Image.Exif()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            exif.load(segment)
            orientation = exif.get(ORIENTATION, 1)
        except Exception:  # of many kinds, for what is no EXIF
            return ["broken EXIF"]
    found = ["broken EXIF"] if caught else []
    return found + (["EXIF orientation, not applied"] if orientation in range(2, 9) else [])


def in_xmp(text: bytes) -> list[str]:
    try:
        text.decode()
    except UnicodeDecodeError:
        return ["XMP that is not UTF-8"]
    return []
