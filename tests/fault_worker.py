"""Run by torchrun: rank 1's weights or buffers drift from rank 0's by one bit."""

import sys

import torch
from torchvision.models import resnet18

from en.distributed.ranks import Ranks, process_group, refuse_drift
from en.errors import RunError

ranks = Ranks.from_environment()
with process_group(ranks, torch.device("cpu"), 60) as group:
    torch.manual_seed(0)
    network = resnet18()
    refuse_drift([network], ranks, group)
    if ranks.rank == 1:
        with torch.no_grad():
            part = network.fc.weight if sys.argv[1] == "weights" else network.bn1.running_mean
            part.view(torch.int32).view(-1)[3] ^= 1
    try:
        refuse_drift([network], ranks, group)
    except RunError as error:
        print(f"rank {ranks.rank}: {error}", flush=True)
