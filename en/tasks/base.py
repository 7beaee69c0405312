"""The decisions of a task: all that differs between naming an image and, say, labelling its pixels."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torchmetrics import MetricCollection

from en.data.augmentation import Drawn
from en.data.crops import Crop
from en.data.palette import Colour
from en.data.targets import ClassIndex, Target
from en.means import Fixed


class Label(NamedTuple):
    """How a metric is written for people: `top-1 85.02 %`."""

    text: str
    unit: str


class Body(NamedTuple):
    """The part of a network that another task's network is but for its head, whose weights it may begin with.

    Attributes:
        module: its name in the network.
        network: the other network's name.
    """

    module: str
    network: str


class Task(BaseModel, ABC):
    """Defines what is predicted of an image, and how well. Its fields are the keys of `task:` in a configuration.

    It keeps no state, and its fields are values that YAML and JSON have. All else is the run's: wrapping, precision,
    accumulation, averages, clipping, checkpoints.

    A field may carry a marker of `en.means`. One without is part of the recipe, and taken to decide which pixels are
    seen in evaluation, so that best.pt begins anew where a resumed run has another one.

    Attributes:
        name: its key in TASKS.
        score: the metric by which best.pt is chosen; higher is better.
        target: the kind of targets that it is learned from.
        own_sizes: whether images keep their own sizes in evaluation where data.eval_resolution is null.
        labels: the metrics that are shown in the terminal and in reports, in this order, those that a set has.
        counted: what its metrics count class by class, in one word.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    score: ClassVar[str]
    target: ClassVar[type[Target]] = ClassIndex
    own_sizes: ClassVar[bool] = False
    labels: ClassVar[dict[str, Label]]
    counted: ClassVar[str] = "images"

    name: Fixed[str]

    @abstractmethod
    def network(self, classes: int, **model: Any) -> nn.Module:
        """A network with its head, and with the normalizer put in, freshly initialized.

        Args:
            classes: how many classes the data set has.
            model: the other arguments of `en.models.build_model`.
        Raises: ValueError for what cannot be built.
        """

    def head(self, network: nn.Module) -> list[str]:
        """Names of the network's modules that are the task's own: see optim.head_lr_factor, init; by default, none."""
        return []

    def body(self, name: str) -> Body | None:
        """The part of a network of this task that `init` may take from the default task's; by default, none."""
        return None

    @abstractmethod
    def check_output(self, output: object, classes: int) -> None:
        """Raises ValueError unless `output`, of two images, is what `loss` and `predict` expect of the network."""

    @abstractmethod
    def crop(self, training: bool) -> Crop:
        """Chooses which part of an image is seen in training or in evaluation."""

    def distort(self, images: Tensor, drawn: Drawn, padding: Colour) -> Tensor:
        """Training images on the device before they are normalized, each changed by itself; by default, as they are.

        A pure function of the arguments, sample by sample, so that an image is the same on any number of ranks.

        Args:
            images: (B, 3, H, W) uint8.
            drawn: what random numbers follow from.
            padding: the colour of what lies beyond an image.
        """
        return images

    def augment(self, images: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """A training batch on the device, changed as a whole; by default, as it is.

        Random numbers come from torch's global generator, which each step seeds.

        Args:
            images: (B, 3, H, W) float32, normalized.
            targets: (B, ...), as `target` has them.
        """
        return images, targets

    @property
    def augmented_by(self) -> dict[str, str | None]:
        """Names the libraries that `distort` and `augment` run, with their versions; by default, none."""
        return {}

    @abstractmethod
    def loss(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor | int]:
        """The sum of the losses of a batch, and over how many of them the mean is to be taken.

        The mean is that of a whole step, over all ranks and micro-batches. The count is a number, such as
        len(targets), where it follows from the size of the batch, or else a scalar tensor; always the same kind.

        Args:
            outputs: of the network in training mode.
            targets: as `augment` gives them.
        """

    def predicted_classes(self, outputs: Any) -> Tensor | None:
        """Class numbers that the outputs of a training step give its images, (B,); by default None, for no such.

        Also None where `augment` mixes images, of which a prediction is of none.

        Args:
            outputs: of the network in training mode.
        """
        return None

    def predict(self, network: nn.Module, images: Tensor) -> Tensor:
        """Predicts (B, 3, H, W) images by the network, in evaluation mode; by default, its output."""
        output: Tensor = network(images).float()
        return output

    @abstractmethod
    def metrics(self, classes: int) -> MetricCollection:
        """New metrics of a set, updated with (predictions, targets).

        Each computes a number for log.jsonl, or a list of them, (n,), such as one for each class; or whole numbers that
        are kept of the last and the best evaluation, (n, m). `confusion`, (classes, classes), counts what is of a class
        by the predicted one, `hits`, (classes, 2), what is of a class and what of that was recognized: reports are
        made of these. A dict gives several, by their names, or none.
        """

    def picture(
        self, image: Tensor, target: Tensor, predicted: Tensor, names: list[str], palette: list[Colour]
    ) -> NDArray[np.uint8] | None:
        """Draws a sample of evaluation for people to look at, small; by default, there is nothing to be seen.

        Args:
            image: (3, H, W) uint8.
            target, predicted: of the sample, as `target` and `predict` have them, on any device.
            names, palette: of the classes.
        Returns: (height, width, 3) uint8.
        """
        return None

    @property
    def manner(self) -> dict[str, Any]:
        """Says how scores are taken, which stands before them in a file; by default, nothing."""
        return {}

    def remark(self, scores: Mapping[str, float], classes: int) -> str:
        """Returns what is to be said wherever scores are shown, such as how they were taken; by default, nothing."""
        return ""

    def check_metrics(self, classes: int, names_taken: Collection[str]) -> None:
        """Raises ValueError unless the score is among the metrics, and none has the name of something else in a row."""
        names = {str(name) for name in self.metrics(classes)}
        if self.score not in names:
            raise ValueError(f"score={self.score!r}: expected one of the metrics {', '.join(sorted(names))}")
        if taken := sorted(names.intersection(names_taken)):
            raise ValueError(f"a metric named {taken[0]!r}: expected a name that a row of the log has not")
