#!/usr/bin/env bash
# A torchmetrics result per class, or per group, has another shape when there is one of them.
#
# torchmetrics 1.9.0: whatever a Metric's compute() returns, a tensor of one element comes out without its axis: (1,) and
# (1, 1) become (). Of two classes the result is (2,), of one (): code that goes over the classes, as len(), zip() or
# tolist() with an index do, fails or takes the number for something else. In a dict each value is treated so. Seen: the
# table that this prints.
# Affects those who compute per class, corruption or group, where a set may hold one: en failed on ImageNet-C with one
# corruption and severity; it gives the axis back (en/evaluation/groups.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.15.0 torchmetrics==1.9.0 numpy==2.4.6
"$work/venv/bin/python" - <<'P'
import torch
from torchmetrics import Metric


class Counts(Metric):
    """Images of each group."""

    def __init__(self, groups, shape):
        super().__init__()
        self.shape = shape
        self.add_state("counts", torch.zeros(groups), dist_reduce_fx="sum")

    def update(self, group):
        self.counts += torch.bincount(group, minlength=len(self.counts))

    def compute(self):
        return {"of each": self.counts.reshape(self.shape)}


found = {}
for groups, shape in ((2, (2,)), (1, (1,)), (2, (2, 1)), (1, (1, 1))):
    metric = Counts(groups, shape)
    metric.update(torch.zeros(3, dtype=torch.long))
    found[shape] = tuple(metric.compute()["of each"].shape)
    print("returned by compute()", shape, "received", found[shape])
assert found == {(2,): (2,), (1,): (), (2, 1): (2, 1), (1, 1): ()}, found
P
