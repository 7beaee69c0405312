"""What is learned: the tasks, one file each, and the registry that names them."""

from en.tasks.base import Body, Label, Task
from en.tasks.registry import DEFAULT, TASKS, build_task, task_class

__all__ = ["DEFAULT", "TASKS", "Body", "Label", "Task", "build_task", "task_class"]
