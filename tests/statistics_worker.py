"""Run as ranks: prints the SHA-256 of the statistics that a run's network sees of its val split, corrupted."""

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor

import torch

from en.data.corruptions import Corruption
from en.evaluation.adapt import Shuffled, moments_of
from en.evaluation.robustness import Corrupted
from en.evaluation.score import scoring


def main() -> None:
    with scoring(sys.argv[1], sys.argv[2:], 0) as (trained, ranks, to_device), ThreadPoolExecutor(1) as pool:
        size = trained.config.shown_size
        assert size is not None
        loader = Corrupted(trained.loaders["val"], Corruption("shot_noise", 3), 5, pool)
        moments = moments_of(trained.model.eval(), Shuffled(loader, ranks, 6, 5), size, to_device)
        values = torch.cat([torch.cat([each.count[None], each.mean, each.squares]) for each in moments.values()])
        if ranks.is_first:
            print(hashlib.sha256(values.numpy().tobytes()).hexdigest(), len(moments))


if __name__ == "__main__":
    main()
