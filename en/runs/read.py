"""Reads a run folder, also one that a kill or a power cut has left damaged."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError

from en.config.reading import flatten
from en.config.section import Count, Section, explain
from en.config.strict_yaml import Tree, read_tree
from en.errors import UserError, shown, warn
from en.runs.position import Position
from en.runs.row import MAX_NUMBER, Row
from en.runs.summary import Name, Summary
from en.text_file import read_text

A_RUN = "a run with at least one finished epoch"
Words = Annotated[str, Field(max_length=100_000)]


class LabelFacts(Section):
    """Labels of a sidecar, as Sidecar.facts tells them."""

    model_config = ConfigDict(extra="ignore")

    origin: dict[Name, Any]
    digest: Name
    samples: Count
    wrong: Count
    classes: Count
    counts: list[tuple[Name, Name, Count]]


class InitFacts(Section):
    """Weights that a run began with: see Initial.row."""

    model_config = ConfigDict(extra="ignore")

    sha256: Name


class StartRow(Section):
    """One start in a run's provenance.json.

    It tells when, how, on what, with which labels and weights; where the run resumed, and what it changed.
    """

    model_config = ConfigDict(extra="ignore")

    time: Name | None = None
    command: Words | None = None
    git_commit: Name | None = None
    git_dirty: bool | None = None
    hardware: Name | None = None
    resumed_at: Position = Position()
    changed: dict[Name, tuple[Any, Any]] = Field(default_factory=dict)  # dotted key: before and now
    labels: LabelFacts | None = None  # None: the set's own
    init: InitFacts | None = None  # None: the seed's


class Provenance(Section):
    """Holds what a report needs of provenance.json."""

    starts: list[StartRow]


def read_log(run: Path, silent: bool = False) -> list[Row]:
    """The rows of log.jsonl, of damaged ones what can be used; torn ones are left out, with a warning unless silent."""
    return [row for row in map(Row.of, whole_rows(run / "log.jsonl", silent)) if 0 < row.epoch <= MAX_NUMBER]


def whole_rows(path: Path, silent: bool = False) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, each with its epoch; what is none is left out, with a warning unless silent."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], 1):
        try:
            row = json.loads(line)
            whole = isinstance(row["epoch"], (int, float)) and isinstance(row.get("step", 0), int)
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if whole:
            rows.append(row)
        elif not silent:
            warn(f"{path}:{number}: not a whole row: left out")
    return rows


def read_summary(run: Path) -> Summary:
    """summary.json. Raises UserError that names what is damaged in it."""
    path = run / "summary.json"
    try:
        return Summary.model_validate_json(read_text(path, A_RUN))
    except ValidationError as error:
        first, *others = error.errors()
        reason = f"expected JSON: {first['msg']}" if first["type"] == "json_invalid" else explain(first)
        raise UserError(f"{path}: {reason}{f' (and {len(others)} more)' if others else ''}") from error


def read_config(run: Path) -> Tree:
    """config.yaml by dotted keys. Raises UserError that names what is damaged in it."""
    path = run / "config.yaml"
    config = read_tree(path, A_RUN)
    if not isinstance(config.get("data"), dict):
        raise UserError(f"{path}: data={shown(config.get('data'))}: expected a section of keys and values")
    return flatten(config)


def read_starts(run: Path) -> list[StartRow] | None:
    """The starts of a run; empty where the file is missing, None where it is damaged."""
    path = run / "provenance.json"
    if not path.exists():
        return []
    try:
        return Provenance.model_validate_json(path.read_bytes()).starts
    except (OSError, ValidationError):
        return None


def digests_of(starts: Sequence[StartRow]) -> dict[str, str]:
    """Returns the digests of the files that keys of the configuration name, as the run's latest starts read them."""
    labels = [start.labels.digest for start in starts if start.labels]
    weights = [start.init.sha256 for start in starts if start.init]
    return {key: read[-1] for key, read in {"data.labels": labels, "init": weights}.items() if read}


def earlier_starts(folder: Path) -> list[dict[str, Any]]:
    """The run's starts so far, by provenance.json; none, with a warning, where a power cut left it damaged."""
    path = folder / "provenance.json"
    if not path.exists():
        return []
    try:
        starts = json.loads(path.read_bytes())["starts"]
        if isinstance(starts, list) and all(isinstance(start, dict) for start in starts):
            return starts
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    warn(f"{path}: damaged: written anew, without the starts before this one")
    return []
