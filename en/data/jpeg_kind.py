"""The kind of a JPEG file by its frame header, which tells a kind that some decoders lack from damage."""

from collections.abc import Iterator

COMMON = (0xC0, 0xC1, 0xC2)  # frames of Huffman-coded DCT, sequential and progressive
UNUSUAL = {
    0xC3: "lossless JPEG",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, 0xDE), "hierarchical JPEG"),
    **dict.fromkeys((0xC9, 0xCA), "arithmetic-coded JPEG"),
    0xCB: "arithmetic-coded lossless JPEG",
    0xF7: "JPEG-LS file",
}
"""Other frames by their markers: ITU-T T.81, table B.1, and T.87."""
ANY_BITS = (0xC3, 0xCB, 0xF7)  # frames of 2 to 16 bits a sample; the others have 8 or 12
ALONE = (0x01, *range(0xD0, 0xD9))  # markers without a segment
SCAN = 0xDA
HEIGHT_AFTER_SCAN = b"\xff\xdc\0\x04"


def unusual_kind(content: bytes) -> str:
    """Names what a well-formed frame header says that some JPEG decoders do not take.

    Returns: e.g. "lossless JPEG", "JPEG of 12 bits a sample"; empty for Huffman-coded DCT of 8 bits and 1, 3 or 4
        components, which all take, and for anything without a well-formed header.
    """
    for marker, segment in segments(content):
        if marker in COMMON or marker in UNUSUAL:
            return describe(marker, segment, content)
    return ""


def segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the markers of a JPEG file up to its first scan, each with its segment's content."""
    at = 2 if content.startswith(b"\xff\xd8") else len(content)
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != SCAN:
        marker = content[at + 1]
        if marker == 0xFF or marker in ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        yield marker, content[at + 4 : at + 2 + length]
        at += 2 + max(length, 2)


def describe(marker: int, frame: bytes, content: bytes) -> str:
    """Puts a frame header in words; empty for a common one, and for one that no encoder writes."""
    if len(frame) < 6 or len(frame) != 6 + 3 * frame[5] or frame[3:5] == b"\0\0":
        return ""
    bits, components, details = frame[0], frame[5], []
    if bits == 12 or (bits != 8 and marker in ANY_BITS):
        details.append(f"{bits} bits a sample")
    if components not in (1, 3, 4):
        details.append(f"{components} components")
    if frame[1:3] == b"\0\0" and HEIGHT_AFTER_SCAN in content:
        details.append("a height that follows its scan")
    if marker in COMMON and not details:
        return ""
    return " of ".join(filter(None, [UNUSUAL.get(marker, "JPEG"), " and ".join(details)]))
