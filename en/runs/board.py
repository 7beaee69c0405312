"""A run as TensorBoard shows it: the log's numbers, what observers saw, classes, pictures, and the loss by step."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary

from en.config.meaning import decides
from en.config.reading import flatten
from en.config.schema import Config
from en.means import Means
from en.runs.by_class import Findings
from en.runs.class_lines import texts
from en.runs.pictures import Pixels, Shares, confusion_map, over_layers, sheet, taking_part
from en.runs.row import Row
from en.runs.tensorboard import NAME, EventFile, Option, histogram, image, options, scalar, text

BY_STEP = "by_step"  # the folder, in a run's, of what has steps for its axis in any case: for TensorBoard, another run
Watched = Mapping[str, Any]  # numbers under names, which may be nested
Observations = Mapping[str, Watched]  # what was watched in an evaluation, by the observers' names


class Board:
    """Writes one start of a run for TensorBoard.

    Args:
        folder: of the run.
        first: the place of the first evaluation on the axis that can follow: that of the last one, and 1.
        first_step: of those of the whole run, counted from 1, that this start trains.
        config: of the run.
        earlier: what was watched in the evaluations before, by the observers' names.
    Raises: OSError.
    """

    def __init__(
        self, folder: Path, first: int, first_step: int, config: Config, earlier: Mapping[str, Sequence[Watched]]
    ) -> None:
        begins = first == 1 or not any(NAME.fullmatch(path.name) for path in folder.iterdir())
        self._events, self._by_step = EventFile(folder, first), EventFile(folder / BY_STEP, first_step)
        self._earlier = {name: [each for each in found if is_by_layer(each)] for name, found in earlier.items()}
        if begins:
            # At no other start: TensorBoard would keep both.
            self._events.add(first, [options(recipe_of(config), group_of(folder, config.seed))])

    def write(self, row: Row, seen: Observations, findings: Findings, images: Pixels | None) -> None:
        """Appends an evaluation and the training before it, durably. Raises OSError.

        Args:
            images: (N, 3, H, W), of that training, as the network saw them.
        """
        tags = {f"train/{name.removeprefix('train_')}": value for name, value in row.training.items()}
        tags |= {f"val/{name}": value for name, value in row.evaluation.items()}
        values = [scalar(tag, value) for tag, value in tags.items() if isinstance(value, (int, float))]
        words = f"epoch {row.epoch:g}" if row.step is None else f"step {row.step}"
        for name, watched in seen.items():
            values += self._watched(name, words, watched)
        values += class_cards(findings, words)
        if images is not None:
            values.append(image("train/images", sheet(images)))
        self._events.add(axis(row.key), values)
        self._events.sync()

    def write_loss(self, step: int, loss: float) -> None:
        """Appends the mean loss of the last steps. Raises OSError."""
        self._by_step.add(step, [scalar("train/loss_by_step", loss)])

    def sync(self) -> None:
        """Has all of it survive a power cut, before a checkpoint counts on it. Raises OSError."""
        self._by_step.sync()

    def close(self) -> None:
        self._events.close()
        self._by_step.close()

    def _watched(self, name: str, words: str, watched: Watched) -> list[Summary.Value]:
        """Shows what an observer saw: each kind over the layers where it saw such, or else a card a number."""
        if not is_by_layer(watched):
            return [scalar(tag, value) for tag, value in figures(f"{name}/", watched).items()]
        earlier = self._earlier.setdefault(name, [])
        values = by_layer_cards(name, words, watched, earlier)
        earlier.append(watched)
        return values


def by_layer_cards(name: str, words: str, shares: Shares, earlier: Sequence[Shares]) -> list[Summary.Value]:
    """Shows of each kind its mean over the layers in which it takes part, their histogram, and a picture of all."""
    values = []
    for kind in dict.fromkeys(kind for own in shares.values() for kind in own):
        if found := [*taking_part(shares, kind).values()]:
            values.append(scalar(f"{name}/{kind}", sum(found) / len(found)))
            values.append(histogram(f"{name}/{kind}_of_layers", found))
        values.append(image(f"{name}/{kind}_by_layer", over_layers(kind, words, shares, earlier)))
    return values


def class_cards(findings: Findings, words: str) -> list[Summary.Value]:
    """Shows the classes as tables and as a picture, and the samples that were drawn."""
    by_class = findings.by_class
    values = [text(tag, markdown) for tag, markdown in texts(by_class).items()]
    if by_class.confusion is not None and by_class.says_something:
        values.append(image("val/confusion", confusion_map(by_class.confusion, by_class.classes, words)))
    return values + [image(f"val/sample_{sample}", content) for sample, content in findings.pictures.items()]


def recipe_of(config: Config) -> dict[str, Option]:
    """Lists what makes a run what it is but for its seed, by dotted key."""
    keys = {key: value for key, value in flatten(config.complete()).items() if value is not None}
    return {
        key: value if isinstance(value, Option) else json.dumps(value)
        for key, value in keys.items()
        if decides(key, Means.RECIPE | Means.FIXED) and not decides(key, Means.OWN)
    }


def group_of(folder: Path, seed: int) -> str:
    """Names what the runs of a suite's variant are, whatever their seed: SUITE/VARIANT; of another run, itself."""
    return f"{folder.resolve().parent.name}/{folder.name.removesuffix(f'-s{seed}')}"


def is_by_layer(watched: Watched) -> bool:
    """Tells whether an observer saw one number for each kind in each layer."""
    return bool(watched) and all(
        isinstance(own, Mapping) and all(isinstance(value, (int, float)) for value in own.values())
        for own in watched.values()
    )


def axis(key: Mapping[str, Any]) -> int:
    """Returns what TensorBoard draws a row over: steps, or else epochs."""
    return int(key["step"] if "step" in key else key["epoch"])


def figures(prefix: str, nested: Watched) -> dict[str, float]:
    """Numbers under nested names as TensorBoard's tags: `ratios/layer1/bn`."""
    found: dict[str, float] = {}
    for name, value in nested.items():
        found |= figures(f"{prefix}{name}/", value) if isinstance(value, Mapping) else {prefix + name: value}
    return found
