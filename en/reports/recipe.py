"""The recipe of the runs: what they share, in a line and key by key."""

from collections.abc import Iterable, Sequence

from en.config.strict_yaml import Tree
from en.reports.runs import Run, frozen
from en.reports.tables import Note, Table, words
from en.reports.variants import UNSET, Variant, counted, machine, plain, resolution, summary_of
from en.runs.summary import Summary

MOST = 3  # values of a key that a line names; more are "various"


def recipe_line(variants: Sequence[Variant]) -> str:
    """Network, data, length, batch, rate, seeds and hardware of the runs; "" without a run."""
    runs = [run for variant in variants for run in variant.runs]
    summaries = [summary_of(run) for run in runs]
    if not runs:
        return ""
    parts = [
        one_of((s.model for s in summaries), "networks"),
        one_of(map(data_of, summaries), "data sets"),
        one_of(map(resolution, summaries), "resolutions"),
        one_of(map(length, runs), "lengths"),
        one_of(map(batch, runs), "batch sizes"),
        one_of(map(rate, runs), "rates"),
        f"seeds {', '.join(map(str, sorted({s.seed for s in summaries})))}",
        one_of(map(machine, summaries), "machines"),
    ]
    return "; ".join(parts)


def one_of(values: Iterable[str], many: str) -> str:
    """The value that all share, a few that they have, or how many there are."""
    found = list(dict.fromkeys(values))
    return " or ".join(found) if len(found) <= MOST else f"{len(found)} {many}"


def data_of(s: Summary) -> str:
    return f"{s.dataset} ({s.classes} classes, {s.images:,} evaluation images)"


def length(run: Run) -> str:
    steps = run.config.get("train.steps")
    return counted(steps, "step") if isinstance(steps, int) else counted(summary_of(run).epochs, "epoch")


def batch(run: Run) -> str:
    """The batch of a step, and of how many images a rank normalizes at once where those are fewer."""
    s, accumulation = summary_of(run), run.config.get("train.accumulation", 1)
    parts = s.world_size * (accumulation if isinstance(accumulation, int) else 1)
    at_once = f", {s.batch_size / parts:g} at once on each rank" if parts > 1 else ""
    return f"batch {s.batch_size}{at_once}"


def rate(run: Run) -> str:
    schedule = plain(run.config.get("schedule.name", UNSET))
    return f"rate {plain(run.config.get('optim.lr', UNSET))}, {schedule}"


def recipe_table(variants: Sequence[Variant]) -> Table:
    """A row for each key in which runs that are compared have to agree: its value, or the values that runs have."""
    recipes = [run.recipe for variant in variants for run in variant.runs]
    keys = sorted({key for recipe in recipes for key in recipe})
    rows = []
    for key in keys:
        found = values_of(recipes, key)
        rows.append([words(key, strong=len(found) > 1), words("; ".join(found))])
    note = Note("train.batch_size is of a step, over all ranks and micro-batches; bold are keys in which runs differ.")
    return Table("recipe", "Recipe, key by key", ["key", "value"], rows, [note])


def values_of(recipes: Sequence[Tree], key: str) -> list[str]:
    """The values that the recipes have of a key, each once."""
    found = {frozen(recipe.get(key, UNSET)): recipe.get(key, UNSET) for recipe in recipes}
    return [plain(value) for value in found.values()]
