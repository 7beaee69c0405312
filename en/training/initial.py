"""Begins a run with other weights than its seed's: those of another network, under a head of its own."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from en.build import build_with_batch_norm, inherit_options
from en.config.meaning import Changes, changes
from en.config.reading import validate
from en.config.schema import Config
from en.data import ImageLoader
from en.data.to_device import ToDevice
from en.errors import UserError, listed
from en.models.transfer import BATCH_NORM, Transfer, copy_tensors, replaces_batch_norm, transfer, within
from en.norm.built import layers_as_built, rebuild
from en.runs.weights import GivenWeights, read_weights
from en.size import Size
from en.tasks import Body, Task, build_task

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
        other: keys of the network and of its input that were other ones for these weights: the values then and now.
    """

    path: str
    digest: str
    averaged: bool
    tensors: Transfer
    before: nn.Module | None
    difference: float | None = None
    other: Changes = field(default_factory=dict)

    @torch.inference_mode()
    def compare(self, task: Task, model: nn.Module, images: Tensor) -> None:
        """Measures how far the network is from what it was with batch normalization, and lets go of that.

        Args:
            images: (B, 3, H, W) on the model's device, normalized.
        """
        assert self.before is not None
        was_training, before = model.training, self.before.to(images.device)
        expected, found = (network.eval()(images).float() for network in (before, model))
        model.train(was_training)
        largest = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
        self.difference, self.before = ((found - expected).abs().max() / largest).item(), None

    def row(self) -> dict[str, Any]:
        """Returns what provenance.json keeps of it."""
        held = {"path": self.path, "sha256": self.digest, "averaged": self.averaged, "difference": self.difference}
        return {"init": held | self.tensors._asdict()}

    def lines(self) -> list[str]:
        """Returns what is shown of it."""
        taken, fresh, dropped = self.tensors
        kind = "averages" if self.averaged else "weights"
        words = [f"{len(taken)} tensors taken from the {kind} of {self.path}"]
        words += [f"{kind} {listed(names) or 'none'}" for kind, names in (("fresh", fresh), ("dropped", dropped))]
        lines = [f"init: {', '.join(words)}"]
        lines += [f"init: {key}={now} (the weights are of {then})" for key, (then, now) in self.other.items()]
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
    try:
        given = read_weights(config.init)
    except UserError as error:
        raise UserError(f"init={config.init}: {error}") from error
    saved, head = given.saved, config.task.head(model)
    then = validate(saved.config, str(given.path)) if saved else None
    body = body_of(given, then, config)
    if body is not None:
        return initialize_body(model, body, given, then, config)
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
    return Initial(
        str(given.path), given.digest, given.averaged, tensors, before, other=other_keys(then, config) if then else {}
    )


def other_keys(then: Config, now: Config) -> Changes:
    """Returns the keys that change what a network of given weights answers, but for its normalizer and the sizes."""
    differing = changes(then.model_dump(), now.model_dump())
    return {
        key: values
        for key, values in differing.items()
        if key.startswith("model.") or key in ("data.mean", "data.std", "data.decode")
    }


def body_of(given: GivenWeights, then: Config | None, now: Config) -> Body | None:
    """Returns the part of the network that is to take the weights, where they are of another task's network."""
    body = now.task.body(now.model.name)
    if body is None:
        return None
    whole = then.task.body(then.model.name) is not None if then else bool(within(given.state, [body.module]))
    return None if whole else body


def initialize_body(model: nn.Module, body: Body, given: GivenWeights, then: Config | None, config: Config) -> Initial:
    """Gives a part of a network the weights of another task's network, of which the head alone is left over.

    How far outputs are from those with batch normalization is not measured: there are none yet.
    """
    prefix, task = f"{body.module}.", then.task if then else build_task({})
    try:
        with torch.device("meta"):
            head = task.head(task.network(2, name=body.network, norm=BATCH_NORM))
        dropped = within(given.state, head)
        if given.saved and then:
            refuse_another_network(then, config, body.network)
            inherit_options(model, given.saved, then, config, prefix)
        weights = {name: value for name, value in given.state.items() if name not in dropped}
        taken = transfer(model.get_submodule(body.module), weights, [], True).taken
    except ValueError as error:
        raise UserError(f"init={config.init}: {error}") from error
    fresh = [name for name in model.state_dict() if not name.startswith(prefix)]
    tensors = Transfer([prefix + name for name in taken], fresh, dropped)
    return Initial(str(given.path), given.digest, given.averaged, tensors, None)


def refuse_another_network(then: Config, now: Config, expected: str | None = None) -> None:
    """Raises UserError for weights of another network, or of a normalizer that no other takes over from."""
    expected = expected or now.model.name
    if then.model.name != expected:
        found = then.model.name
        raise UserError(f"init={now.init}: weights of model.name={found}: expected those of {expected}")
    if then.norm.name not in (now.norm.name, BATCH_NORM):
        expected = now.norm.name
        if expected != BATCH_NORM:
            expected += f", or {BATCH_NORM} with norm.start={BATCH_NORM}"
        raise UserError(f"init={now.init}: weights of norm.name={then.norm.name}: expected those of {expected}")


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
