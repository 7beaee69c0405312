"""Tells what a key means, by its marker in the schema, to resuming, suites, reports, ranks and evaluation."""

from collections.abc import Iterable
from functools import reduce
from operator import or_
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from en.config.reading import flatten
from en.config.schema import Config
from en.config.strict_yaml import Tree
from en.means import Means
from en.size import as_key
from en.tasks import TASKS, Task

Changes = dict[str, tuple[Any, Any]]  # dotted key: the values then and now


def meaning(key: str) -> Means:
    """Returns what a dotted key decides: its marker, or else that of the section that it is in.

    A key of several tasks is what it is in any. One that the schema does not know, of another version of this package
    for one, is part of the recipe.
    """
    found, sections = Means.RECIPE, [Config]
    for name in key.split("."):
        fields = [section.model_fields[name] for section in sections if name in section.model_fields]
        if not fields:
            break
        found = reduce(or_, [marker(field, found) for field in fields])
        sections = [section for field in fields for section in sections_of(field)]
    return found


def marker(field: FieldInfo, otherwise: Means) -> Means:
    """Returns the marker of a field, or of the section that it is in."""
    return next((each for each in field.metadata if isinstance(each, Means)), otherwise)


def sections_of(field: FieldInfo) -> list[Any]:
    """Lists the sections of keys that a field may hold; of a task's, those of all tasks."""
    kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
    sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return [*sections, *TASKS.values()] if Task in sections else sections


def decides(key: str, any_of: Means) -> bool:
    """Tells whether a key has one of these meanings."""
    return bool(meaning(key) & any_of)


def deciding(keys: Iterable[str], any_of: Means) -> list[str]:
    """Lists the keys that have one of these meanings."""
    return [key for key in keys if decides(key, any_of)]


def names_the_run(key: str) -> bool:
    """Tells whether a key says where a run lies, of which a run that goes on has a value of its own."""
    return Means.OWN | Means.PLACE in meaning(key)


def changes(then: Tree, now: Tree) -> Changes:
    """Returns what differs between two configurations, sections and all, by dotted key."""
    before, after = flatten(then), flatten(now)
    keys = {**after, **before}
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def same_pixels(then: Config, now: Config) -> bool:
    """Tells whether two configurations show a network the same pixels of an image in evaluation."""
    return not deciding(changes(*map(resolved, (then, now))), Means.PIXELS)


def resolved(config: Config) -> dict[str, Any]:
    """Returns a configuration's values, the size in evaluation where it is that of training too."""
    values, size = config.model_dump(), config.shown_size
    return values | {"data": values["data"] | {"eval_resolution": size and as_key(size)}}


def at_a_resume(means: Means) -> str:
    """Says whether a resumed run may change a key of this meaning."""
    said = {
        Means.FIXED: "no",
        Means.ORDER: "between epochs",
        Means.LENGTH: "not below what is done",
    }
    return next((words for each, words in said.items() if each in means), "yes")


def in_recipe(means: Means) -> str:
    """Says whether another value of a key of this meaning makes another recipe."""
    return "yes" if Means.RECIPE in means else "no"
