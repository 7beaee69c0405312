"""Protocols of scoring maps of classes: published scores are of one each, and do not compare across them."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from en.size import Size

RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of mmsegmentation's and semseg's multi-scale scores


@dataclass(frozen=True)
class Resize:
    """The size at which the network sees an image: it fits into `short` and `long`; where neither is given, its own.

    Attributes:
        short, long: of the sides, at most, pixels; one of them is reached. None: any.
        ratio: of the image's own sides, where neither is given.
        multiple: of which both sides are, rounded up from the size that fits.
    """

    short: int | None = None
    long: int | None = None
    ratio: float = 1.0
    multiple: int = 1

    def size(self, height: int, width: int) -> Size:
        """Height and width for an image of these, rounded to the nearest pixel, or cut to one before `multiple`."""
        ends = ((self.short, min(height, width)), (self.long, max(height, width)))
        factor = min((limit / side for limit, side in ends if limit is not None), default=self.ratio)
        rows, columns = (max(1, int(side * factor + (0.5 if self.multiple == 1 else 0))) for side in (height, width))
        return -(-rows // self.multiple) * self.multiple, -(-columns // self.multiple) * self.multiple

    def __str__(self) -> str:
        ends = [f"{name} <= {limit}" for name, limit in (("short", self.short), ("long", self.long)) if limit]
        return " ".join(ends) or f"x {self.ratio:g}"


@dataclass(frozen=True)
class Protocol:
    """Says how a network's logits become classes of pixels, and these a score, at the size that labels are shown at.

    Attributes:
        resizes: sizes at which the network sees an image, one pass each.
        flip: whether each pass is made of the mirrored image too; with windows, of each of them where it is.
        window: side of square windows in which a pass sees the image, pixels; None: whole. Images smaller than that are
            padded around with the mean colour.
        stride: of the windows, pixels.
        averaged: what passes are averaged of, at the labels' size: probabilities (softmax), or logits.
        windows_averaged: the same of windows where they overlap.
        steps: how logits are enlarged to the labels' size: at once, or by way of the input's size.
        corners: whether corners are aligned (align_corners) in the first of these steps.
        absent: what a class that is neither in the labels nor predicted counts for in the mean: left_out, or zero.
        source: where the protocol is from.
    """

    resizes: tuple[Resize, ...]
    source: str
    flip: bool = False
    window: int | None = None
    stride: int | None = None
    averaged: Literal["probabilities", "logits"] = "probabilities"
    windows_averaged: Literal["probabilities", "logits"] = "logits"
    steps: Literal["once", "twice"] = "once"
    corners: bool = False
    absent: Literal["left_out", "zero"] = "left_out"

    def rows(self) -> dict[str, Any]:
        """Its fields, for people and files."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"resizes": ", ".join(map(str, self.resizes))}


OURS = "our choice"
SNSEG = "switchablenorms/SwitchNorm_Segmentation 9b047b4, evaluate.sh, README"
MMSEG = "mmsegmentation 1.2.2, configs and metafiles; multi-scale by the ratios of 0.x's base size"
SEMSEG = "hszhao/semseg 4f274c3, tool/test.py and configs"


def snseg(*shorts: int) -> Protocol:
    resizes = tuple(Resize(short, 1000, multiple=8) for short in shorts)
    return Protocol(resizes, SNSEG, absent="zero")


def mmseg(short: int, long: int, many: bool) -> Protocol:
    resizes = tuple(Resize(round(short * ratio), round(long * ratio)) for ratio in (RATIOS if many else (1.0,)))
    return Protocol(resizes, MMSEG, flip=many, steps="twice")


def semseg(long: int, window: int, many: bool) -> Protocol:
    resizes = tuple(Resize(long=round(long * ratio)) for ratio in (RATIOS if many else (1.0,)))
    return Protocol(
        resizes,
        SEMSEG,
        flip=True,
        window=window,
        stride=-(-window * 2 // 3),
        windows_averaged="probabilities",
        steps="twice",
        corners=True,
        absent="zero",
    )


ANY = "any"
PROTOCOLS: dict[str, dict[str, Protocol]] = {
    "ours": {ANY: Protocol((Resize(),), OURS)},
    "ours_ms": {ANY: Protocol(tuple(Resize(ratio=ratio) for ratio in RATIOS), OURS, flip=True)},
    "snseg": {"ade20k": snseg(450)},
    "snseg_ms": {"ade20k": snseg(300, 400, 500, 600)},
    "mmseg": {"ade20k": mmseg(512, 2048, False), "cityscapes": mmseg(1024, 2048, False)},
    "mmseg_ms": {"ade20k": mmseg(512, 2048, True), "cityscapes": mmseg(1024, 2048, True)},
    "semseg": {"ade20k": semseg(512, 473, False), "cityscapes": semseg(2048, 713, False)},
    "semseg_ms": {"ade20k": semseg(512, 473, True), "cityscapes": semseg(2048, 713, True)},
}
"""By their names, and by the data set whose sizes they have."""


def protocol(name: str, data_set: str | None) -> Protocol:
    """The protocol of that name for a data set. Raises ValueError for one that it has no sizes for."""
    found = PROTOCOLS[name]
    if ANY in found:
        return found[ANY]
    if data_set not in found:
        raise ValueError(f"protocol={name} with data_set={data_set or 'null'}: expected data_set={' or '.join(found)}")
    return found[data_set]
