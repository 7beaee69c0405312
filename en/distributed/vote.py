"""A question that all ranks answer alike: whether any of them says yes."""

import torch
import torch.distributed as dist


class Vote:
    """Agrees with the other ranks on whether to stop, say.

    Args:
        group: a gloo group of all ranks, or None for one process.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._asked = torch.zeros(1)
        self._question: dist.Work | None = None

    def agreed(self, own: bool, wait: bool) -> bool:
        """Whether any rank has said yes. All have to ask at the same steps, and all are given the same answer.

        Args:
            own: what this rank says.
            wait: for the answer of now; else it is that of the step before, found out meanwhile, so that no step waits.
        """
        if self._group is None:
            return own
        if self._answer():
            return True
        self._asked = torch.full((1,), float(own))
        self._question = dist.all_reduce(self._asked, group=self._group, async_op=True)
        return wait and self._answer()

    def _answer(self) -> bool:
        if self._question is None:
            return False
        self._question.wait()
        self._question = None
        return bool(self._asked.item())
