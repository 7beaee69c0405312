"""The result of a run, its summary.json: written by training, read by reports and suites."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from en.config.section import Count, Section, Sides
from en.runs.position import Position

Name = Annotated[str, Field(max_length=1000)]
Amount = Annotated[float, Field(ge=0, le=1e15)]
Epochs = Count | Amount
Score = Annotated[float, Field(ge=-1e150, le=1e150)]  # a loss may explode; its square is to be a number


class Summary(Section):
    """A run up to its last finished epoch.

    Attributes:
        model, norm, task: of the configuration; norm_options: all of the normalizer's, defaults of that day included.
        mixed: how many layers of en, sn or ssn mix which normalizers.
        dataset, classes, images: what the scores are of: its name, and how many classes and evaluation images it has.
        seed, epochs, epochs_done, resolution, eval_resolution, batch_size: as configured, and how much of it is done.
            Where rows are keyed by steps, epochs are fractions.
        scores, details: the task's metrics after the last finished epoch (see Scores).
        score: the metric by which best.pt is chosen; best_score, best_epoch: its highest value, and after which epoch.
        done_at, best_at: of a run whose rows are keyed by steps, the positions of the last evaluation and the best one.
        params, gmacs, norm_gmacs: see `en.models.Complexity`.
        images_per_second: of the last epoch's training, over all ranks; None where it resumed after its last step.
        world_size, hardware: ranks, and processors or GPUs in words.
    """

    model_config = ConfigDict(extra="ignore")

    model: Name
    norm: Name
    norm_options: dict[Name, Any]
    mixed: dict[Name, Count] = Field(default_factory=dict)
    task: Name
    dataset: Name
    classes: Count
    images: Count
    seed: Count
    epochs: Epochs
    epochs_done: Epochs
    resolution: Sides
    eval_resolution: Sides
    batch_size: Count
    scores: dict[Name, Score]
    details: dict[Name, list[Score | None]] = Field(default_factory=dict)
    score: Name
    best_score: Score
    best_epoch: Epochs
    done_at: Position | None = None
    best_at: Position | None = None
    params: Count
    gmacs: Amount
    norm_gmacs: Amount
    images_per_second: Amount | None
    world_size: Count
    hardware: Name
