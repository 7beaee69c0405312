"""Triton's own launcher over a driver that notes launches, for machines without a GPU: cuda.c is that driver."""

import ctypes
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import torch
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver, CudaLauncher, CudaUtils

MOST_PARAMETERS = 64


class Function(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * 128),
        ("parameters", ctypes.c_int),
        ("offset", ctypes.c_size_t * MOST_PARAMETERS),
        ("size", ctypes.c_size_t * MOST_PARAMETERS),
    )


class Note(ctypes.Structure):
    _fields_ = (
        ("function", ctypes.POINTER(Function)),
        ("extended", ctypes.c_int),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("values", ctypes.c_uint64 * MOST_PARAMETERS),
    )


class Launch(NamedTuple):
    """Holds what the driver was asked to launch, with its parameters and their bytes, and whether Triton asked."""

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    stream: int | None
    values: tuple[int, ...]
    sizes: tuple[int, ...]
    by_triton: bool


class Driver(CudaDriver):  # type: ignore[misc]
    """Triton's driver of an H100, over cuda.c.

    Args:
        folder: where cuda.c is compiled to.
    """

    def __init__(self, folder: Path) -> None:
        os.environ["TRITON_LIBCUDA_PATH"] = str(folder)  # Triton links its launcher with what lies there
        self.library = driver_in(folder)
        self.utils, self.launcher_cls = CudaUtils(), CudaLauncher

    def launches(self) -> list[Launch]:
        """Returns the launches since it was last asked."""
        notes = [self.library.noted_launch(place).contents for place in range(self.library.noted_launches())]
        found = []
        for note in notes:
            kernel = note.function.contents
            values, sizes = note.values[: kernel.parameters], kernel.size[: kernel.parameters]
            launched = kernel.name.decode(), tuple(note.grid), tuple(note.block), note.shared, note.stream
            found.append(Launch(*launched, tuple(values), tuple(sizes), bool(note.extended)))
        self.library.forget_launches()
        return found

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def driver_in(folder: Path) -> ctypes.CDLL:
    """Compiles cuda.c, and has this process take it for the driver, once torch has seen that there is none."""
    assert torch.cuda.device_count() == 0
    torch.ones(1, requires_grad=True).sum().backward()  # autograd asks for devices when it begins
    library = folder / "libcuda.so.1"
    if not library.exists():
        source, headers = Path(__file__).with_name("cuda.c"), Path(nvidia.__file__).with_name("include")
        options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-Wl,-soname,libcuda.so.1", f"-I{headers}"]
        subprocess.run(["cc", *options, str(source), "-o", str(library)], check=True)
    found = ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    found.noted_launch.restype = ctypes.POINTER(Note)
    return found
