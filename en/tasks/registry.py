"""Tasks by name."""

from difflib import get_close_matches
from typing import Any

from en.errors import shown
from en.tasks.base import Task
from en.tasks.classification import Classification
from en.tasks.segmentation import Segmentation

DEFAULT = "classification"
TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "segmentation": Segmentation,
}


def task_class(name: object) -> type[Task]:
    """The task of that name. Raises ValueError for an unknown one."""
    if not isinstance(name, str) or name not in TASKS:
        close = get_close_matches(str(name)[:100], TASKS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"name={shown(name)}: expected one of {', '.join(TASKS)}{hint}")
    return TASKS[name]


def build_task(keys: dict[str, Any]) -> Task:
    """The task of a configuration's section, by default classification. Raises ValueError for a wrong key or value."""
    return task_class(keys.get("name", DEFAULT)).model_validate(keys)
