"""The normalizers' Triton kernels as a GPU gets them: compiled without one, and launched on one that takes notes."""

import contextlib
import io
import warnings
from functools import partial
from itertools import combinations
from typing import ClassVar

import pytest
import torch
from norm_cases import images, randomized
from torch import Tensor, nn
from triton_process import TYPES, process

from en.norm.kernels.gpu import device as gpu

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    yield from process(TRITON_CACHE_DIR=str(tmp_path_factory.mktemp("triton")))


def compile_for_gpu(name, options, shape, dtype, training) -> dict[str, str]:
    """Compiles what a layer would launch on an H100; its tensors have no memory, so nothing can wait for them."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_kernel

    from en.norm.kernels.gpu import layer as layers

    kinds = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}
    kinds[torch.int64] = "i64"
    code = {}

    def build(kernel, grid, *arguments, warps=4, **constants):
        signature, given, attributes = {}, {}, {}
        values = dict(zip([p.name for p in kernel.params], arguments, strict=False)) | constants
        for place, key in enumerate(p.name for p in kernel.params):
            value = values[key]
            aligned = isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0)
            if key in constants or value is None or (isinstance(value, int) and value == 1):
                signature[key], given[(place,)] = "constexpr", value
                continue
            signature[key] = f"*{kinds[value.dtype]}" if isinstance(value, Tensor) else "i32"
            if aligned:
                attributes[(place,)] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, signature, given, attributes)
        made = compile_kernel(
            source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "enable_fp_fusion": True}
        )
        code[kernel.fn.__name__] = made.asm["ptx"]

    layer = randomized(name, shape[1], **options).train(training).to("meta")
    x = torch.empty(shape, dtype=dtype, device="meta").to(memory_format=torch.channels_last)
    plan = layer.native_plan(pixels=1024)
    small = layers.small_of(plan, x)
    parameters = layers.by_name(small, plan.parameters)
    with pytest.MonkeyPatch.context() as patch:
        for module in (layers, gpu.triton_passes()):
            patch.setattr(module, "launch", build)
        _, kept = layers.forward(plan, small, x, parameters)
        layers.backward(small, x, x, kept, parameters, parameters, True, True)
    return code


@pytest.mark.parametrize(
    ("name", "options", "shape", "dtype"),
    [
        ("en", {}, (256, 64, 56, 56), torch.bfloat16),
        ("sn", {"normalizers": ["bn", "in", "gn"], "momentum": None}, (1, 58, 1, 1), torch.float16),
    ],
    ids=["en", "sn"],
)
def test_kernels_compile_for_a_gpu_without_waiting_for_one_and_load_sixteen_bytes_at_a_time(
    compiled, name, options, shape, dtype
):
    code = compiled(compile_for_gpu, name, options, shape, dtype, True)
    assert {"moments", "pool", "coefficients", "affine", "pool_gradients", "moment_gradients"} <= set(code)
    if shape[1] % 16 == 0:
        for kernel in ("moments", "affine", "gradient_sums", "input_gradient"):
            assert "ld.global.v4.b32" in code[kernel], kernel
        assert "st.global.v4.b32" in code["affine"] and "st.global.v4.b32" in code["input_gradient"]


class Recording:
    """A driver of a GPU that compiles for it, and notes what is launched instead of launching it."""

    notes: ClassVar[list[tuple[object, ...]]] = []  # of every instance: Triton keeps launchers

    def __init__(self) -> None:
        from triton.backends.compiler import GPUTarget

        self.utils = self
        self.get_current_target = lambda: GPUTarget("cuda", 90, 32)
        self.launcher_cls = lambda source, metadata: partial(self.note, metadata)
        self.get_device_properties = lambda device: {"max_shared_mem": 232_448}

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def load_binary(self, *binary: object) -> tuple[int, ...]:
        return 1, 1, 32, 0, 1024

    def unload_module(self, module: int) -> None:
        pass

    def note(self, metadata, x, y, z, stream, function, packed, launch, enter, leave, *arguments) -> None:
        kinds = [
            (part.dtype, part.shape, part.data_ptr() % 16) if isinstance(part, Tensor) else part for part in arguments
        ]
        self.notes.append((metadata.name, metadata.num_warps, metadata.enable_fp_fusion, (x, y, z), *kinds))


def relaunched(name, shape) -> dict[str, tuple[list[tuple[object, ...]], int]]:
    """What a layer launches on x, again, on an x in another place and on one of another size: and how much anew."""
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    from en.norm.kernels.gpu import launches

    launches.compiled.clear(), launches.slow.clear()
    recording, layer, found = Recording(), randomized(name, shape[1]), {}
    x = images(*shape)
    places = torch.empty(x.numel() + 1)[1:].view(shape).copy_(x)
    anew: list[str] = []
    run = JITFunction.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "works", lambda device, dtype: True)
        patch.setattr(launches, "SLOW_S", 0)
        patch.setattr(JITFunction, "run", lambda self, *a, **k: anew.append(self.__name__) or run(self, *a, **k))
        driver.set_active(recording)
        try:
            for way, given in {"first": x, "again": x, "unaligned": places, "fewer": x[1:].clone(), "last": x}.items():
                recording.notes.clear(), anew.clear()
                layer(given.requires_grad_()).sum().backward()
                found[way] = list(recording.notes), len(anew)
        finally:
            driver.set_active(None)
    return found


def with_errors(check, *arguments):
    """What a check returns, and what it wrote on stderr."""
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        return check(*arguments), errors.getvalue()


@pytest.mark.parametrize("name", ["en", "sn"])
def test_a_launch_that_is_like_an_earlier_one_skips_triton_and_gives_the_same_arguments(compiled, name):
    found, told = compiled(with_errors, relaunched, name, (3, 8, 4, 4))
    assert told.count("en.norm compiles Triton's kernels") == 1
    first, anew = found["first"]
    assert anew == len(first) == 10
    assert found["again"] == (first, 0) == found["last"]
    unaligned, anew = found["unaligned"]
    reads_x = {"moments", "affine", "gradient_sums", "input_gradient"}
    assert anew == len(reads_x) and [note[0] for note in unaligned] == [note[0] for note in first]
    assert all((note in first) == (note[0] not in reads_x) for note in unaligned)
    fewer, anew = found["fewer"]
    assert anew == len(fewer) and not any(note in first for note in fewer)


def told_apart() -> list[str]:
    """Pairs of arguments that Triton compiles apart and that are taken for the same here."""
    from triton._C.libtriton import native_specialize_impl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend

    from en.norm.kernels.gpu.launches import trait

    backend = make_backend(GPUTarget("cuda", 90, 32))
    arguments: list[object] = [None, 0, 1, 2, 16, 17, 2**31 - 1, 2**31, 2**32, 2**63]
    for dtype in (*TYPES, torch.int64):
        values = torch.empty(64, dtype=dtype)
        arguments += [values, values[1:], nn.Parameter(values[8:], requires_grad=dtype.is_floating_point)]
    kinds = [(native_specialize_impl(type(backend), part, False, True, True), trait(part)) for part in arguments]
    return [f"{a} {b}" for a, b in combinations(kinds, 2) if a[0] != b[0] and a[1] == b[1]]


def test_arguments_that_triton_compiles_apart_are_remembered_apart(compiled):
    assert compiled(told_apart) == []


def warned_of() -> tuple[list[str], bool]:
    layer, x = randomized("en", 6).eval(), images(2, 6, 3, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outputs = [layer(x) for _ in range(3)]
    return [str(warning.message) for warning in caught], torch.allclose(outputs[0], layer.plain(x), atol=1e-5)


def test_where_triton_cannot_run_it_says_so_once_and_computes_the_same(compiled):
    messages, same = compiled(warned_of)  # tensors of a CPU: Triton finds no driver for them
    assert same and len(messages) == 1 and "torch's operations" in messages[0] and "driver" in messages[0]
