"""Batch statistics over several ranks, in real processes on gloo."""

import pytest
from commands import succeed


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_batch_split_over_several_ranks_gives_the_results_of_the_whole_batch_on_one(ranks):
    succeed("tests/sync_worker.py", ranks=ranks)
