"""Batch moments over several ranks, in real processes on gloo."""

import pytest
from commands import succeed


@pytest.mark.parametrize("ranks", [2, 3])
def test_parts_of_a_batch_on_several_ranks_give_what_the_whole_gives_on_one(ranks):
    succeed("tests/sync_worker.py", ranks=ranks)
