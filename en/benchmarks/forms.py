"""The forms in which a normalizer runs, chosen by the environment variable that en.norm reads at each call."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from en.norm.kernels import SWITCH

FORMS: dict[str, str] = {"layers": "layers", "passes": "passes", "torch": "0"}
"""The value for whole layers where there is code for them, for the four passes, for torch's operations."""


@contextmanager
def in_form(form: str) -> Iterator[None]:
    """Sets the variable."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = FORMS[form]
    try:
        yield
    finally:
        os.environ.pop(SWITCH, None)
        if before is not None:
            os.environ[SWITCH] = before


def step_in_form(step: Callable[[], object], form: str) -> Callable[[], object]:
    """The step, which runs in a form whenever it is called."""

    def run() -> None:
        with in_form(form):
            step()

    return run
