"""PNG files: without what stands beside their pixels, and how many bits these have."""

import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
BESIDE = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # texts and the colour profile, which Pillow does not apply
AROUND = 12  # bytes of a chunk besides its data: length, kind, checksum


def without_text(content: bytes) -> bytes:
    """A PNG file without its texts and its profile, which change no pixel; any other file as it is.

    Pillow refuses a file with more than 1 MB in one of them, and it need not, and had better not, decompress what may
    be a bomb. One whose checksum is wrong stays, so that Pillow finds it.
    """
    if not content.startswith(SIGNATURE):
        return content
    kept, at = [SIGNATURE], len(SIGNATURE)
    while at + AROUND <= len(content):
        end = at + AROUND + int.from_bytes(content[at : at + 4], "big")
        chunk = content[at:end]
        if chunk[4:8] not in BESIDE or zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            kept.append(chunk)
        at = end
    return b"".join([*kept, content[at:]])


def bits_of_grey(content: bytes) -> int:
    """Reads how many bits a pixel of a grey PNG has, 1 to 16; 0 for one of another kind and for any other file."""
    is_grey = content.startswith(SIGNATURE) and content[12:16] == b"IHDR" and content[25:26] == b"\0"
    return content[24] if is_grey else 0
