"""A finished network on corrupted images, and by statistics of the images that it is shown."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import torch

from en.data import Batch, ImageLoader
from en.data.corruptions import CORRUPTIONS, SEVERITIES, Corruption
from en.data.loader import Wrapped
from en.data.order import Ints
from en.errors import UserError, listed, shown
from en.evaluation.adapt import Statistics, say_what_adapts
from en.evaluation.evaluate import evaluate
from en.evaluation.ratios import mean_ratios
from en.evaluation.score import Scoring, scoring
from en.norm import record_ratios
from en.norm.adaptation import averaging_layers
from en.progress import tell
from en.runs.scores import DIGITS
from en.size import Size

KIND = "C-like"
REMARK = f"{KIND}: corruptions and constants of this package's own: no published mCE stands beside these figures"
Shifted = dict[str, Any]  # what is printed of one corruption and kind of statistics


class Corrupted(Wrapped):
    """Evaluation of corrupted images, the same whatever loader they come from; see Corruption."""

    def __init__(self, loader: ImageLoader, corruption: Corruption, seed: int, pool: Executor) -> None:
        super().__init__(loader)
        self.corruption, self.seed, self.pool = corruption, seed, pool

    def eval_epoch(self, size: Size | None) -> Iterator[Batch]:
        return map(self.corrupted, super().eval_epoch(size))

    def eval_samples(self, samples: Ints, size: Size | None) -> Iterator[Batch]:
        return map(self.corrupted, super().eval_samples(samples, size))

    def corrupted(self, batch: Batch) -> Batch:
        images = self.corruption.apply_to_batch(batch.images, batch.samples, self.seed, self.pool)
        return batch._replace(images=images)


def parse_corruptions(words: Sequence[str]) -> list[Corruption]:
    """Reads NAME, for all severities, or NAME:SEVERITY, or all, in the order of CORRUPTIONS. Raises UserError."""
    chosen = set()
    for word in words:
        name, colon, severity = word.partition(":")
        names = [*CORRUPTIONS] if name == "all" else [name]
        if name != "all" and name not in CORRUPTIONS:
            raise UserError(f"--corrupt {shown(word)}: expected all or one of {listed([*CORRUPTIONS])}")
        if colon and severity not in map(str, SEVERITIES):
            raise UserError(f"--corrupt {shown(word)}: expected a severity from {SEVERITIES[0]} to {SEVERITIES[-1]}")
        severities = (int(severity),) if colon else SEVERITIES
        chosen |= {Corruption(each, number) for each in names for number in severities}
    return [
        Corruption(name, number) for name in CORRUPTIONS for number in SEVERITIES if Corruption(name, number) in chosen
    ]


def score_shifted(
    where: str,
    overrides: list[str],
    recalibrate_over: int,
    statistics: Sequence[Statistics],
    corruptions: Sequence[Corruption],
    seed: int,
) -> Iterator[Shifted]:
    """The metrics of a finished network on its val split as it is, and corrupted, by each kind of statistics.

    The checkpoint is only read. Yields, the same on all ranks: for each kind of statistics a row of the images as they
    are (severity 0), one for each corruption, with EN's mean ratios by layer, and, of several corruptions, their mean.

    Args:
        where, overrides, recalibrate_over: as for `score`.
        seed: of the corruptions, and of the order in which images come into batches for statistics.
    Raises: UserError, RunError.
    """
    facts = {"statistics": [*map(str, statistics)], "corrupt": [*corruptions], "seed of corruptions": seed}
    with (
        scoring(where, overrides, recalibrate_over, facts) as opened,
        ThreadPoolExecutor(opened.ranks.share_of_cores()) as pool,
    ):
        if opened.trained.config.shown_size is None:
            raise UserError(
                "data.eval_resolution=null: expected one size of all images, for statistics and corruptions"
            )
        adapted = len(averaging_layers(opened.trained.model))
        rows: list[Shifted] = []
        say_what_adapts(opened.trained, statistics, opened.ranks)
        for each in statistics:
            said = {"statistics": str(each), "adapted_layers": 0 if each.kind == "none" else adapted}
            if adapted or not rows:
                rows = []
                for row in rows_of(opened, each, corruptions, seed, pool):
                    rows.append(said | row)
                    yield rows[-1]
            else:  # the same again
                rows = [row | said for row in rows]
                yield from rows
            if corruptions and opened.ranks.is_first:
                for line in table(rows, opened.trained.config.task.score, seed):
                    tell(line)


def rows_of(
    opened: Scoring, statistics: Statistics, corruptions: Sequence[Corruption], seed: int, pool: Executor
) -> Iterator[Shifted]:
    """The rows of one kind of statistics, without its name: see `score_shifted`."""
    yield scores_of(opened, statistics, None, seed, pool)
    found = []
    for corruption in corruptions:
        found.append(scores_of(opened, statistics, corruption, seed, pool))
        yield found[-1]
    if len(found) > 1:
        yield mean_of(found, opened)


def scores_of(
    opened: Scoring, statistics: Statistics, corruption: Corruption | None, seed: int, pool: Executor
) -> Shifted:
    """The row of one corruption, or of the images as they are."""
    (trained, ranks, to_device), said = opened, {"corruption": "none", "severity": 0}
    config, model, loader = trained.config, trained.model, trained.loaders["val"]
    size = config.shown_size
    assert size is not None
    if corruption is not None:
        loader = Corrupted(loader, corruption, seed, pool)
        said = {"corruption": corruption.name, "severity": corruption.severity}
    try:
        with (
            statistics.taken(model, loader, size, to_device, ranks, seed) as shown_loader,
            record_ratios(model) as record,
        ):
            scores = evaluate(config.task, model, shown_loader, size, to_device, ranks.is_first)
    except ValueError as error:
        if statistics.kind == "none":
            raise
        raise UserError(f"--statistics {statistics}: {error}") from error
    with torch.inference_mode():
        ratios = rounded(mean_ratios(model, record))
    found = {**said, **config.task.manner, **scores.values, **scores.details, "images": loader.samples}
    return found | ({"ratios": ratios} if ratios else {})


def rounded(ratios: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {name: {kind: round(share, DIGITS) for kind, share in shares.items()} for name, shares in ratios.items()}


def mean_of(rows: Sequence[Shifted], opened: Scoring) -> Shifted:
    """The mean over corruptions and severities, each counting the same."""
    config = opened.trained.config
    names = [name for name in config.task.labels if name in rows[0]] or [config.task.score]
    means = {name: round(sum(row[name] for row in rows) / len(rows), DIGITS) for name in names}
    return {"corruption": "mean", "of": len(rows), "kind": KIND, **means, "images": rows[0]["images"]}


def table(rows: Sequence[Shifted], score: str, seed: int) -> list[str]:
    """Says the scores by corruption and severity, and EN's ratios, over all layers, by severity."""
    clean, corrupted = rows[0], [row for row in rows[1:] if row["corruption"] != "mean"]
    names = list(dict.fromkeys(row["corruption"] for row in corrupted))
    severities = sorted({row["severity"] for row in corrupted})
    by_place = {(row["corruption"], row["severity"]): row[score] for row in corrupted}
    width = max(len(name) for name in (*names, "corruption"))
    statistics = f"{clean['statistics']}, {clean['adapted_layers']} layers"
    lines = [
        REMARK,
        f"{score} by severity, statistics={statistics}, seed {seed}; images as they are {clean[score]:.2f}",
    ]
    lines.append(line_of("corruption", [*map(str, severities), "mean"], width))
    for name in names:
        found = [by_place.get((name, severity)) for severity in severities]
        lines.append(line_of(name, [*found, mean([value for value in found if value is not None])], width))
    of_each = [mean([by_place[place] for place in by_place if place[1] == severity]) for severity in severities]
    lines.append(line_of("mean", [*of_each, mean([*by_place.values()])], width))
    if "ratios" in clean:
        lines += ratio_lines(rows, severities, width)
    return lines


def ratio_lines(rows: Sequence[Shifted], severities: Sequence[int], width: int) -> list[str]:
    """Says EN's mean ratios by severity, 0 being the images as they are; layers and corruptions count the same."""
    lines = [line_of("ratio", [*map(str, (0, *severities))], width)]
    shares = [(row["severity"], layer) for row in rows if "ratios" in row for layer in row["ratios"].values()]
    for kind in dict.fromkeys(kind for _, layer in shares for kind in layer):
        found = [
            mean([layer[kind] for own, layer in shares if own == severity and kind in layer])
            for severity in (0, *severities)
        ]
        lines.append(line_of(kind, found, width, digits=4))
    return lines


def line_of(name: str, values: Sequence[float | str | None], width: int, digits: int = 2) -> str:
    words = ["" if value is None else value if isinstance(value, str) else f"{value:.{digits}f}" for value in values]
    return " ".join([f"{name:{width}}", *(f"{word:>7}" for word in words)]).rstrip()


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
