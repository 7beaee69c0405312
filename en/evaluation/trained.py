"""A finished network, from its checkpoint alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from en.build import build_network, open_loaders
from en.config.reading import merged, parse_override, validate
from en.config.schema import Config
from en.data import ImageLoader
from en.distributed.ranks import Ranks
from en.errors import UserError
from en.runs import checkpoint
from en.runs.checkpoint import Checkpoint
from en.runs.completeness import averages


@dataclass(frozen=True)
class Trained:
    """A network with its weights, on the CPU, and the data that it is shown.

    Attributes:
        path, saved: the checkpoint, and what it holds.
        config: of the checkpoint, with overrides.
        model: with the averaged weights where the run kept them.
        loaders: by split.
    """

    path: Path
    saved: Checkpoint
    config: Config
    model: nn.Module
    loaders: dict[str, ImageLoader]

    def close(self) -> None:
        """Ends the loaders."""
        for loader in self.loaders.values():
            loader.close()


def open_trained(where: str, overrides: Sequence[str], ranks: Ranks, splits: Sequence[str]) -> Trained:
    """The network of a run's last.pt, or of a checkpoint, and the splits of its data.

    Args:
        where: a run folder or a checkpoint.
        overrides: `key=value` over the configuration in the checkpoint.
    Raises: UserError, also for data of other classes and missing averages; RunError for weights that are not finite.
    """
    path = checkpoint.locate(where)
    saved = checkpoint.load(path)
    tree = saved.config
    for override in overrides:
        tree = merged(tree, parse_override(override))
    config = validate(tree, str(path))
    loaders = open_loaders(config, ranks, splits)
    if any(loader.classes != saved.classes for loader in loaders.values()):
        raise UserError(f"data.root={config.data.root}: expected the classes that {path} was trained on")
    # A checkpoint without trained_pixels, of an earlier version, is of the resolution that it was trained at.
    model = build_network(config, len(saved.classes), validate(saved.config, str(path)).data.resolution)
    checkpoint.load_weights(model, averages(saved, path) or saved.model, path)
    return Trained(path, saved, config, model, loaders)
