"""A few samples of a set, the same in each evaluation, drawn as they are predicted."""

import io

import torch.distributed as dist
from PIL import Image
from torch import Tensor

from en.data import Batch, ImageLoader
from en.distributed.collectives import gather
from en.tasks import Task

SAMPLES = 4  # so few that files, events and pages stay small (our choice)
QUALITY = 80  # of JPEG, colours at the full size


def chosen(samples: int) -> list[int]:
    """SAMPLES of a set, or all of fewer, in even distances: a function of their number alone."""
    count = min(SAMPLES, samples)
    return [(2 * number + 1) * samples // (2 * count) for number in range(count)]


class Examples:
    """Pictures of a task's predictions on the chosen samples of a set.

    Each rank draws those that it evaluates.
    """

    def __init__(self, task: Task, loader: ImageLoader) -> None:
        self._task, self._loader = task, loader
        self._chosen = {*chosen(loader.samples)}
        self._drawn: dict[int, bytes] = {}

    def __call__(self, batch: Batch, predicted: Tensor, targets: Tensor) -> None:
        """Looks at a batch and what was predicted of it."""
        for row, sample in enumerate(batch.samples.tolist()):
            if sample in self._chosen:
                names, palette = self._loader.classes, self._loader.palette
                picture = self._task.picture(batch.images[row], batch.targets[row], predicted[row], names, palette)
                if picture is not None:
                    file = io.BytesIO()
                    Image.fromarray(picture).save(file, "JPEG", quality=QUALITY, subsampling=0)
                    self._drawn[sample] = file.getvalue()

    def of_all_ranks(self, group: dist.ProcessGroup | None) -> dict[int, bytes]:
        """JPEG files by the samples' numbers, in their order. All ranks have to ask together."""
        found = {sample: content for own in gather(self._drawn, group) for sample, content in own.items()}
        return dict(sorted(found.items()))
