"""Python's time for EN's kernels, forward and backward, beside nn.BatchNorm2d, with a GPU that launches nothing.

    python tests/triton_host.py [ROUNDS]

Tensors of the CPU are taken for those of a GPU, whose driver does nothing at a launch: all that Triton and this package
do before it is done. The input is of 2 x 64 x 1 x 1, of which nn.BatchNorm2d, torch's on a CPU, has almost nothing to
compute: what is left is calls. Microseconds of this process's processor, blocks of 50 steps of each in turns.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from cuda_driver import Driver
from norm_cases import images, randomized
from torch import Tensor, nn
from triton.runtime.driver import driver
from triton_process import begin

from en.norm.kernels.gpu import device as gpu

STEPS = 50
SHAPE = (2, 64, 1, 1)


def microseconds(layer: nn.Module, x: Tensor, dy: Tensor) -> float:
    """Times a step, forward and backward, with gradients that are new each time."""
    inputs = [x, *layer.parameters()]
    begun = time.process_time()
    for _ in range(STEPS):
        for part in inputs:
            part.grad = None
        layer(x).backward(dy)
    return (time.process_time() - begun) / STEPS * 1e6


def main(rounds: int) -> None:
    begin()
    gpu.works = lambda device, dtype: True
    with tempfile.TemporaryDirectory() as folder:
        idle = Driver(Path(folder))
    idle.library.set_noting(False)
    driver.set_active(idle)
    layers = {"en": randomized("en", 64), "nn.BatchNorm2d": nn.BatchNorm2d(64)}
    given = {name: (layer, images(*SHAPE).requires_grad_()) for name, layer in layers.items()}
    for layer, x in given.values():
        microseconds(layer, x, torch.ones_like(x))
    found = {name: [] for name in given}
    for _ in range(rounds):
        for name, (layer, x) in given.items():
            found[name].append(microseconds(layer, x, torch.ones_like(x)))
    for name, values in found.items():
        print(f"{name}: {min(values):.0f} us at least, {sorted(values)[rounds // 2]:.0f} in the middle of {rounds}")
    least, middle = ([f(found[name]) for name in layers] for f in (min, lambda values: sorted(values)[rounds // 2]))
    print(f"en / nn.BatchNorm2d: {least[0] / least[1]:.2f} of the least, {middle[0] / middle[1]:.2f} of the middle")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
