"""What a run begins with instead of its seed's weights: those of another network, under a head of its own."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from en.build import build_with_batch_norm, maps_at
from en.config.reading import validate
from en.config.schema import Config
from en.data import ImageLoader
from en.data.to_device import ToDevice
from en.errors import UserError, listed
from en.models.transfer import BATCH_NORM, Transfer, copy_tensors, replaces_batch_norm, transfer
from en.norm.built import layers_as_built, rebuild
from en.norm.registry import INHERITED
from en.norm.trained_maps import set_maps
from en.runs.contents import Checkpoint
from en.runs.weights import GivenWeights, read_weights
from en.size import Size
from en.tasks import Task

IMAGES = 16  # on which outputs are compared


@dataclass
class Initial:
    """The weights that a run begins with, and what became of them.

    Attributes:
        path, digest: the file, and its SHA-256.
        averaged: whether they are averages.
        tensors: what was taken, fresh and dropped.
        before: the network with batch normalization, where other normalizers have taken over what it had learned.
        difference: of the outputs from its own, over the largest of these; None until it is measured.
    """

    path: str
    digest: str
    averaged: bool
    tensors: Transfer
    before: nn.Module | None
    difference: float | None = None

    @torch.inference_mode()
    def compare(self, task: Task, model: nn.Module, images: Tensor) -> None:
        """Measures how far the network is from what it was with batch normalization, and lets go of that.

        Args:
            images: (B, 3, H, W) on the model's device, normalized.
        """
        assert self.before is not None
        was_training, before = model.training, self.before.to(images.device)
        expected, found = (task.predict(network.eval(), images) for network in (before, model))
        model.train(was_training)
        largest = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
        self.difference, self.before = ((found - expected).abs().max() / largest).item(), None

    def row(self) -> dict[str, Any]:
        """What provenance.json keeps of it."""
        held = {"path": self.path, "sha256": self.digest, "averaged": self.averaged, "difference": self.difference}
        return {"init": held | self.tensors._asdict()}

    def lines(self) -> list[str]:
        """What is shown of it."""
        taken, fresh, dropped = self.tensors
        kind = "averages" if self.averaged else "weights"
        words = [f"{len(taken)} tensors taken from the {kind} of {self.path}"]
        words += [f"{kind} {listed(names) or 'none'}" for kind, names in (("fresh", fresh), ("dropped", dropped))]
        lines = [f"init: {', '.join(words)}"]
        if self.difference is not None:
            lines.append(
                f"init: outputs differ by at most {self.difference:.3g} of the largest from those with {BATCH_NORM}"
            )
        return lines


def initialize(model: nn.Module, config: Config, classes: list[str]) -> Initial | None:
    """Gives a new network the weights that `init` names; None where it names none.

    Only the head, what the task calls so, may be new. It is taken too where it fits and, of a checkpoint of this
    package, tells the same classes apart. Options of the normalizers that the configuration does not give are those
    that the weights were trained with.

    Raises: UserError that names `init` and what does not fit.
    """
    if config.init is None:
        return None
    given = read_weights(config.init)
    saved, head = given.saved, config.task.head(model)
    then = validate(saved.config, str(given.path)) if saved else None
    if then:
        refuse_another_network(then, config)
    same_head = saved is None or then is None or (saved.classes, then.task.name) == (classes, config.task.name)
    try:
        if saved and then:
            inherit_options(model, saved, then, config)
        tensors = transfer(model, given.state, head, same_head)
        before = None
        if replaces_batch_norm(model, given.state):
            before = network_before(given, config, len(classes))
            copy_tensors(model, before, transfer(before, given.state, head, same_head).fresh)
    except ValueError as error:
        raise UserError(f"init={config.init}: {error}") from error
    return Initial(str(given.path), given.digest, given.averaged, tensors, before)


def refuse_another_network(then: Config, now: Config) -> None:
    """Raises UserError for weights of another network, or of a normalizer that no other takes over from."""
    if then.model.name != now.model.name:
        found, expected = then.model.name, now.model.name
        raise UserError(f"init={now.init}: weights of model.name={found}: expected those of {expected}")
    if then.norm.name not in (now.norm.name, BATCH_NORM):
        expected = f"{now.norm.name}, or {BATCH_NORM} with norm.start={BATCH_NORM}"
        raise UserError(f"init={now.init}: weights of norm.name={then.norm.name}: expected those of {expected}")


def inherit_options(model: nn.Module, saved: Checkpoint, then: Config, config: Config) -> None:
    """Gives the normalizers those options of the weights' own that the configuration does not give."""
    now = layers_as_built(model)
    if saved.norms.keys() != now.keys():
        return  # of an earlier version, which does not tell; of another network, which the names will show
    kept = None if then.norm.name == config.norm.name else INHERITED
    options = {
        place: now[place] | {
            key: value
            for key, value in theirs.items()
            if key in now[place] and key not in config.norm.options and (kept is None or key in kept)
        }
        for place, theirs in saved.norms.items()
    }  # fmt: skip
    rebuild(model, options)
    set_maps(model, maps_at(model, config.training_resolution.full))


def network_before(given: GivenWeights, config: Config, classes: int) -> nn.Module:
    """Builds the network with the batch normalization that the weights were trained with."""
    model = build_with_batch_norm(config, classes)
    if given.saved and given.saved.norms.keys() == layers_as_built(model).keys():
        rebuild(model, given.saved.norms)
    return model


def some_images(loader: ImageLoader, size: Size, to_device: ToDevice) -> Tensor:
    """Some images of a set, from its beginning to its end, as the network's input, (IMAGES or fewer, 3, H, W)."""
    samples = np.unique(np.linspace(0, loader.samples - 1, IMAGES).astype(np.int64))
    batches = [to_device(batch.images, batch.targets)[0] for batch in loader.eval_samples(samples, size)]
    return torch.cat(batches)
