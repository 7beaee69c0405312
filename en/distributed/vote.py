"""The step after which all ranks stop together, once one of them was asked to."""

import torch
import torch.distributed as dist

from en.training.signals import StopRequest


class StopVote:
    """Agrees with the other ranks on whether to stop.

    Args:
        request: what this rank was asked.
        group: a gloo group of all ranks, or None for one process.
    """

    def __init__(self, request: StopRequest, group: dist.ProcessGroup | None) -> None:
        self.request, self._group = request, group
        self._asked = torch.zeros(1)
        self._question: dist.Work | None = None

    def agreed(self, wait: bool = False) -> bool:
        """Whether all ranks stop here. All have to ask at the same steps, and all are given the same answer.

        Args:
            wait: for the answer of now; else it is that of the step before, found out meanwhile, so that no step waits.
        """
        if self._group is None:
            return bool(self.request.signal)
        if self._answer():
            return True
        self._asked = torch.full((1,), float(bool(self.request.signal)))
        self._question = dist.all_reduce(self._asked, group=self._group, async_op=True)
        return wait and self._answer()

    def _answer(self) -> bool:
        if self._question is None:
            return False
        self._question.wait()
        self._question = None
        return bool(self._asked.item())
