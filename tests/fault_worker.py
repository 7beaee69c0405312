"""Run as several ranks: rank 1's weights, then its buffers, drift from rank 0's by one bit."""

import torch
from torchvision.models import resnet18

from en.distributed.agreement import refuse_drift
from en.distributed.group import process_group
from en.distributed.ranks import Ranks
from en.errors import RunError

ranks = Ranks.from_environment()
with process_group(ranks, torch.device("cpu"), 60) as group:
    for part in ("fc.weight", "bn1.running_mean"):
        torch.manual_seed(0)
        network = resnet18()
        refuse_drift([network], ranks, group)
        if ranks.rank == 1:
            network.state_dict()[part].view(torch.int32).view(-1)[3] ^= 1
        try:
            refuse_drift([network], ranks, group)
        except RunError as error:
            print(f"{part}, rank {ranks.rank}: {error}", flush=True)
