"""A yes-or-no vote among the ranks: yes if any rank votes yes."""

import torch
import torch.distributed as dist


class Vote:
    """Agrees with the other ranks, for example on whether to stop.

    Args:
        group: a gloo group of all ranks; None for a single process.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._votes = torch.zeros(1)
        self._pending: dist.Work | None = None

    def agreed(self, own: bool, wait: bool) -> bool:
        """Tells whether any rank votes yes. All ranks have to ask at the same steps, and all get the same answer.

        Args:
            own: this rank's vote.
            wait: whether to wait for this step's result; else the answer is the previous step's, gathered meanwhile.
        """
        if self._group is None:
            return own
        if self._answer():
            return True
        self._votes = torch.full((1,), float(own))
        self._pending = dist.all_reduce(self._votes, group=self._group, async_op=True)
        return wait and self._answer()

    def _answer(self) -> bool:
        if self._pending is None:
            return False
        self._pending.wait()
        self._pending = None
        return bool(self._votes.item())
