"""Processes in which Triton's kernels take tensors of the CPU for those of a GPU, for checks of the test's module.

Triton reads TRITON_INTERPRET as it is imported, so the checks run in a process that starts with it or without it.
"""

import concurrent.futures
import multiprocessing
import os
import warnings

import pytest
import torch
from torch import Tensor, nn

from en.norm import kernels
from en.norm.kernels.gpu import device as gpu

INTERPRET = "TRITON_INTERPRET"
TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
launched: list[str] = []
"""Names of the kernels that this process has run."""


def with_kernels(check, arguments):
    """Runs a check with whole layers as kernels, whatever was chosen before."""
    os.environ[kernels.SWITCH] = "layers"
    return check(*arguments)


def process(**environment):
    """A function that runs a check in a process of its own, with this environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(INTERPRET, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        context = multiprocessing.get_context("spawn")
        pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=context, initializer=begin)
        pool.submit(os.getpid).result()
    yield lambda check, *arguments: pool.submit(with_kernels, check, arguments).result()
    pool.shutdown()


def begin():
    """Has the kernels take tensors of the CPU for those of a GPU, and notes which kernels the interpreter runs."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    gpu.on_gpu = lambda x: type(x) in (Tensor, nn.Parameter)
    if os.environ.get(INTERPRET) == "1":
        from triton.runtime.interpreter import InterpretedFunction

        run = InterpretedFunction.run
        InterpretedFunction.run = lambda self, *a, **k: launched.append(self.fn.__name__) or run(self, *a, **k)
        assert all(gpu.works(torch.device("cpu"), dtype) for dtype in TYPES)


def taken() -> list[str]:
    """The kernels run since it was last asked."""
    names = list(launched)
    launched.clear()
    return names
