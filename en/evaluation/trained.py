"""A finished network, from its checkpoint alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from en.build import build_network, inherit_options, open_loaders
from en.config.meaning import changes, deciding
from en.config.reading import overridden, validate
from en.config.schema import Config
from en.data import ImageLoader
from en.distributed.ranks import Ranks
from en.errors import UserError, in_one_line, shown, warn
from en.evaluation.coverage import class_id
from en.means import Means
from en.models.transfer import BATCH_NORM, transfer
from en.norm import without_options
from en.norm.built import in_one, layers_as_built, rebuild
from en.progress import tell
from en.runs import checkpoint
from en.runs.completeness import averages
from en.runs.contents import Checkpoint, load_weights


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
    """Opens the network of a run's last.pt, or of a checkpoint, and the splits of its data.

    Says on stderr in what it differs from the network that was trained.

    Args:
        where: a run folder or a checkpoint.
        overrides: `key=value` over the configuration in the checkpoint.
    Raises: UserError, also for data of other classes and missing averages; RunError for weights that are not finite.
    """
    path = checkpoint.locate(where)
    saved = checkpoint.load(path)
    tree = overridden(saved.config, overrides, str(path))
    begun, config = (validate(each, str(path)) for each in (saved.config, tree))
    replaced = config.norm.name != begun.norm.name
    if replaced and not takes_over(begun, config):
        expected = f"{begun.norm.name}, the normalizer of {path}"
        hint = f", or norm.start={BATCH_NORM} with it" if begun.norm.name == BATCH_NORM else ""
        raise UserError(f"norm.name={config.norm.name}: expected {expected}{hint}")
    loaders = open_loaders(config, ranks, splits)
    if any(loader.classes != saved.classes for loader in loaders.values()):
        raise UserError(f"data.root={config.data.root}: expected the classes that {path} was trained on")
    if loaders and config.data.root != begun.data.root:
        warn_of_numbers(saved.classes, f"data.root={config.data.root}")
    # A checkpoint without trained_pixels, of an earlier version, is of the resolution that it was trained at.
    model = build_network(config, len(saved.classes), begun.training_resolution.full)
    weights, changed = averages(saved, path) or saved.model, {}
    if replaced:
        take_over(model, weights, saved, begun, config, path)
    else:
        changed = rebuild_as_trained(model, saved, config, path)
        load_weights(model, without_options(weights) if changed else weights, path)
    for line in other_than_trained(begun, config, saved, changed) if ranks.is_first else []:
        tell(line)
    return Trained(path, saved, config, model, loaders)


def refuse_overrides(where: str, each: Sequence[Sequence[str]]) -> None:
    """Raises UserError for some of several overrides that the configuration in a checkpoint does not take."""
    path = checkpoint.locate(where)
    begun = checkpoint.load(path).config
    for overrides in each:
        validate(overridden(begun, overrides, str(path)), str(path))


def takes_over(begun: Config, config: Config) -> bool:
    """Tells whether the network's normalizers are to begin on the batch normalization that it was trained with."""
    return begun.norm.name == BATCH_NORM and config.norm.options.get("start") == BATCH_NORM


def take_over(
    model: nn.Module, weights: Mapping[str, Tensor], saved: Checkpoint, begun: Config, config: Config, path: Path
) -> None:
    """Gives other normalizers what batch normalization had learned, as `init` does before a training."""
    try:
        inherit_options(model, saved, begun, config)
        transfer(model, weights, head=[], same_head=True)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def warn_of_numbers(classes: Sequence[str], where: str) -> None:
    """Warns of other data whose classes have the same names, but names that do not say what they are."""
    if not any(map(class_id, classes)):
        warn(
            f"{where}: the classes are called by numbers, such as {shown(classes[0])}, as those that the network was "
            "trained on: nothing says that they are the same"
        )


def rebuild_as_trained(model: nn.Module, saved: Checkpoint, config: Config, path: Path) -> dict[str, object]:
    """Gives the normalizers the options that they were trained with, but for those that are given as other ones now.

    Returns: the latter, with their values now.
    """
    changed = {key: value for key, value in config.norm.options.items() if saved.norm_options.get(key) != value}
    if layers_as_built(model).keys() == saved.norms.keys():
        try:
            rebuild(model, {place: {**options, **changed} for place, options in saved.norms.items()})
        except ValueError as error:
            raise UserError(f"{path}: norms.{error}") from error
    as_trained = in_one(saved.norms)
    return {key: value for key, value in changed.items() if not saved.norms or as_trained.get(key) != value}


def other_than_trained(begun: Config, config: Config, saved: Checkpoint, changed: dict[str, object]) -> list[str]:
    """Returns a line for each key on which scores depend and that is another one than in training."""
    differing = changes(begun.model_dump(), config.model_dump())
    options = in_one(saved.norms)
    lines = [f"evaluates with norm.{key}={value} (trained with {options.get(key)})" for key, value in changed.items()]
    lines += [
        f"evaluates with {key}={differing[key][1]} (trained with {differing[key][0]})"
        for key in deciding(differing, Means.SCORES | Means.PIXELS)
        if key.removeprefix("norm.") not in config.norm.options
    ]
    return [in_one_line(line) for line in lines]
