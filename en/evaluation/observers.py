"""Observers, which watch a network while it is evaluated, besides the task's metrics."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

from torch import nn

from en.evaluation.ratios import MeanRatios
from en.runs.board import Observations, Watched


class Observer(Protocol):
    """One thing that is watched.

    Attributes:
        name: of its rows, NAME.jsonl of a run, and of its cards, NAME/... of TensorBoard.
    """

    name: str

    def watching(self, network: nn.Module) -> AbstractContextManager[Callable[[], Watched]]:
        """Watches a network inside `with`.

        Yields: what to ask after it, all ranks together: numbers under names, which may be nested; empty for nothing.
            Shares by layer, from bottom to top, and kind are shown over the layers, 0 as a gap; all else number by
            number.
        """
        ...


OBSERVERS: Sequence[Observer] = (MeanRatios(),)


@contextmanager
def watching(network: nn.Module) -> Iterator[Callable[[], Observations]]:
    """Has all observers watch a network. Yields: what to ask after `with`: what each saw, by its name."""
    with ExitStack() as stack:
        asked = {each.name: stack.enter_context(each.watching(network)) for each in OBSERVERS}
        yield lambda: {name: ask() for name, ask in asked.items()}
