"""Compiles what whole layers of ResNet50 launch, many kernels at a time, so that no measured step waits for Triton."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from itertools import product

import torch
from torch import Tensor, nn

from en.benchmarks.steps import DTYPES, LAYOUTS, network_of
from en.norm import build_norm
from gpu.results import Report, Setup
from gpu.test_networks import setting_of

NAMES = ("en", "sn", "gn")


def test_kernels(setup: Setup, report: Report) -> None:
    """Each shape of each normalizer in a process; Triton keeps what it compiles on disk."""
    setting = setting_of(setup, "resnet50", "train")
    jobs = list(product(NAMES, shapes_in(network_of(setting, "nn.BatchNorm2d"), setting.shape)))
    workers = 1 if setup.tiny else min(len(os.sched_getaffinity(0)), len(jobs))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(run_once, name, shape, setting.dtype, setup.device) for name, shape in jobs]
        for (name, shape), job in zip(jobs, running, strict=True):
            with report.attempt(f"{name} {shape}"):
                job.result()
    report.row("compiled", kernels_of=len(jobs), processes=workers)


def shapes_in(network: nn.Module, shape: tuple[int, int, int, int]) -> list[tuple[int, ...]]:
    """The sizes that a network's batch normalizations see, each once, for inputs of `shape`; computes nothing."""
    seen: dict[tuple[int, ...], None] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[tuple(inputs[0].shape)] = None

    for layer in network.to("meta").modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(note)
    network(torch.empty(shape, device="meta"))
    return list(seen)


def run_once(name: str, shape: tuple[int, ...], dtype: str, device: str) -> None:
    """Forward and backward of a layer."""
    torch.set_num_threads(1)
    x = torch.randn(shape, device=device, dtype=DTYPES[dtype]).contiguous(memory_format=LAYOUTS["channels_last"])
    layer = build_norm(name, shape[1]).to(device)
    y = layer(x.requires_grad_())
    torch.autograd.backward(y, torch.ones_like(y))
