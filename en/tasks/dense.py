"""Classes of all pixels of images of any size, from logits that stay as small as the network gives them.

Logits at the labels' size, which a library's own forward makes of each pass, are kept nowhere: those of all passes stay
at the network's stride, and are enlarged, made probabilities and added up in bands of rows, whose classes alone are
kept.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from en.size import Size
from en.tasks.protocols import Protocol

BAND = 2**21  # values of a band, over all classes: 8 MiB in float32 (our choice)
Rows = Callable[[int, int], Tensor]
"""Rows from one to before another of maps of some height and width: (N, C, rows, width)."""


def predict_classes(network: nn.Module, images: Tensor, protocol: Protocol) -> Tensor:
    """The most likely class of each pixel, of equal ones that of the lowest number.

    Args:
        network: (N, 3, h, w) -> logits (N, C, h', w') of any smaller size, in evaluation mode.
        images: (N, 3, H, W), normalized, so that 0 is the mean colour.
    Returns: (N, H, W) uint8.
    """
    size = (images.shape[2], images.shape[3])
    passes = [enlarged(network, seen, size, protocol) for seen in views(images, protocol)]
    classes = torch.empty((len(images), *size), dtype=torch.uint8, device=images.device)
    rows, first = 1, 0  # one row tells how many classes there are
    while first < size[0]:
        end = min(size[0], first + rows)
        total = summed(passes, first, end, protocol.averaged == "probabilities")
        classes[:, first:end] = total.argmax(1)
        rows, first = max(1, BAND // (total.numel() // total.shape[2])), end
    return classes


def summed(passes: Sequence[Rows], first: int, end: int, probabilities: bool) -> Tensor:
    """Rows of the passes, added up as logits or as probabilities: (N, C, rows, W)."""
    total = torch.zeros(())
    for number, rows in enumerate(passes):
        band = rows(first, end)
        # Of a single pass, the order of the logits is that of the probabilities.
        part = band.softmax(1) if probabilities and len(passes) > 1 else band
        total = total.add_(part) if number else part
    return total


def views(images: Tensor, protocol: Protocol) -> Iterator[tuple[Tensor, bool]]:
    """Yields the images at the size of each pass, and whether they are mirrored; windows are mirrored one by one."""
    for resize in protocol.resizes:
        size = resize.size(images.shape[2], images.shape[3])
        scaled = images if size == images.shape[2:] else F.interpolate(images, size, mode="bilinear")
        yield scaled, False
        if protocol.flip and protocol.window is None:
            yield scaled.flip(3), True


def enlarged(network: nn.Module, seen: tuple[Tensor, bool], size: Size, protocol: Protocol) -> Rows:
    """A pass over images as rows of logits, or of windows' probabilities, of the images' own size."""
    images, mirrored = seen
    corners, whole = protocol.corners, (images.shape[2], images.shape[3])
    if protocol.window is not None:
        assert protocol.stride is not None
        rows = windowed(network, images, protocol.window, protocol.stride, protocol)
        return upsampled(rows, whole[0], size, corners=False)
    logits = logits_of(network, images, mirrored)
    if protocol.steps == "once":
        return upsampled(taken(logits), logits.shape[2], size, corners)
    return upsampled(upsampled(taken(logits), logits.shape[2], whole, corners), whole[0], size, corners=False)


def logits_of(network: nn.Module, images: Tensor, mirrored: bool) -> Tensor:
    """The network's logits at its stride, as those of images that are not mirrored."""
    logits: Tensor = network(images).float()
    return logits.flip(3) if mirrored else logits


def taken(maps: Tensor) -> Rows:
    return lambda first, end: maps[:, :, first:end]


def upsampled(rows: Rows, height: int, size: Size, corners: bool) -> Rows:
    """Maps of a height, bilinearly enlarged to a size, in the numbers of F.interpolate over whole maps.

    Args:
        corners: align_corners of F.interpolate.
    """

    def enlarged_rows(first: int, end: int) -> Tensor:
        low, high, share = neighbours(first, end, height, size[0], corners)
        start, stop = int(low[0]), int(high[-1]) + 1
        source = rows(start, stop)
        places = [index.to(source.device) - start for index in (low, high)]
        upper, lower = (source.index_select(2, place) for place in places)
        mixed = torch.lerp(upper, lower, share.to(source)[:, None])
        if mixed.shape[3] == size[1]:
            return mixed
        return F.interpolate(mixed, (end - first, size[1]), mode="bilinear", align_corners=corners)

    return enlarged_rows


def neighbours(first: int, end: int, length: int, count: int, corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Finds, of `length` rows enlarged to `count`, those that a range lies between, and how near to the second."""
    rows = torch.arange(first, end, dtype=torch.float64)
    if corners:
        places = rows * ((length - 1) / (count - 1)) if count > 1 else rows * 0
    else:
        places = ((rows + 0.5) * (length / count) - 0.5).clamp(min=0)
    low = places.floor().long().clamp(max=length - 1)
    return low, (low + 1).clamp(max=length - 1), places - low


def windowed(network: nn.Module, images: Tensor, window: int, stride: int, protocol: Protocol) -> Rows:
    """Square windows over images as rows of the images' size, the mean of those that overlap, mirrored ones included.

    A window is mirrored where it is, as semseg does: windows of a mirrored image would lie elsewhere.
    """
    height, width = images.shape[2:]
    above, beside = (max(0, window - side) // 2 for side in (height, width))
    below, beyond = max(0, window - height) - above, max(0, window - width) - beside
    padded = F.pad(images, (beside, beyond, above, below))
    tops, lefts = (starts(side, window, stride) for side in padded.shape[2:])
    parts: list[tuple[int, int, Rows]] = []
    for top in tops:
        for left in lefts:
            seen = padded[:, :, top : top + window, left : left + window]
            for mirrored in (False, True)[: 1 + protocol.flip]:
                logits = logits_of(network, seen.flip(3) if mirrored else seen, mirrored)
                rows = upsampled(taken(logits), logits.shape[2], (window, window), protocol.corners)
                parts.append((top, left, rows))

    def averaged_rows(first: int, end: int) -> Tensor:
        first, end = first + above, end + above
        total, counts = torch.zeros(()), torch.zeros(end - first, padded.shape[3], device=images.device)
        for top, left, rows in parts:
            start, stop = max(first, top), min(end, top + window)
            if start >= stop:
                continue
            band = rows(start - top, stop - top)
            band = band.softmax(1) if protocol.windows_averaged == "probabilities" else band
            if total.ndim == 0:
                total = band.new_zeros(*band.shape[:2], end - first, padded.shape[3])
            total[:, :, start - first : stop - first, left : left + window] += band
            counts[start - first : stop - first, left : left + window] += 1
        return total.div_(counts)[:, :, :, beside : beside + width]

    return averaged_rows


def starts(length: int, window: int, stride: int) -> list[int]:
    """Returns where windows begin, each `stride` after the one before but for the last, which ends at the end."""
    count = math.ceil((length - window) / stride) + 1
    return [min(number * stride, length - window) for number in range(count)]
