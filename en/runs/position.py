"""Where a run is, between two of its steps."""

import numpy as np

from en.config.section import Count, Section


class Position(Section):
    """How much of a run is done. Counted from 0 here; `words` counts from 1, as people do.

    Attributes:
        epoch: finished epochs.
        step: finished steps of the next one.
    """

    epoch: Count = 0
    step: Count = 0

    def after_step(self) -> "Position":
        """Returns where the run is once its next step is done."""
        return Position(epoch=self.epoch, step=self.step + 1)

    def seed(self, seed: int, rank: int) -> int:
        """Computes the seed of this rank's random numbers in the next step."""
        return int(np.random.SeedSequence([seed, self.epoch, self.step, rank]).generate_state(1)[0])

    def time(self, steps: int) -> float:
        """The real-valued epoch, with `steps` steps in each."""
        return self.epoch + self.step / steps

    def words(self, steps: int | None = None) -> str:
        """Says what was done last: "epoch 3", or "step 5/10 of epoch 4", with an epoch's steps where they are known."""
        if not self.step:
            return f"epoch {self.epoch}"
        return f"step {self.step}{'' if steps is None else f'/{steps}'} of epoch {self.epoch + 1}"
