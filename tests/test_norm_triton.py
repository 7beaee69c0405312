"""The normalizers' Triton kernels against the plain form in float64, in Triton's interpreter: there is no GPU here.

Triton reads TRITON_INTERPRET as it is imported, so the checks run in a process that starts with it. Another one without
it compiles the kernels for a GPU, which needs none.
"""

import concurrent.futures
import contextlib
import copy
import io
import multiprocessing
import os
import warnings
from functools import partial
from itertools import combinations
from typing import ClassVar

import pytest
import torch
from norm_cases import every_case, images, randomized
from torch import Tensor, nn

from en.norm import build_norm, kernels, record_ratios
from en.norm.kernels import gpu
from en.norm.kernels import passes as in_torch
from en.norm.kernels.gpu import blocks

pytest.importorskip("triton")

INTERPRET = "TRITON_INTERPRET"
FORMATS = [torch.contiguous_format, torch.channels_last]
TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = [  # the last two are cut into several programs along their pixels
    (2, 3, 5, 5),
    (3, 16, 7, 7),
    (1, 58, 1, 1),
    (3, 1, 2, 3),
    (2, 24, 9, 40),
    (1, 130, 3, 3),
    (1, 1, 120, 130),
    (1, 3, 90, 91),
]
WHOLE = ["in", "ln", "gn", "sn", "ssn", "en"]
launched: list[str] = []
"""Names of the kernels that this process has run."""

if os.environ.get(INTERPRET) == "1":
    import triton
    import triton.language as tl

    from en.norm.kernels.gpu.pass_kernels import origin, place

    @triton.jit
    def first_offsets(
        out, cells, pixels, cell_blocks, splits, length, CELLS: tl.constexpr, CHANNELS_LAST: tl.constexpr
    ):
        outer, first, split, _, _ = place(cell_blocks, splits, cells, CELLS)
        tl.store(out + tl.program_id(0), origin(outer, first, split * length, cells, pixels, CHANNELS_LAST))


def with_kernels(check, arguments):
    """Runs a check with whole layers as kernels, whatever was chosen before."""
    os.environ[kernels.SWITCH] = "layers"
    return check(*arguments)


def process(**environment):
    """A function that runs a check of this module in a process of its own, with this environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(INTERPRET, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        context = multiprocessing.get_context("spawn")
        pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=context, initializer=begin)
        pool.submit(os.getpid).result()
    yield lambda check, *arguments: pool.submit(with_kernels, check, arguments).result()
    pool.shutdown()


@pytest.fixture(scope="module")
def interpreted():
    yield from process(**{INTERPRET: "1"})


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    yield from process(TRITON_CACHE_DIR=str(tmp_path_factory.mktemp("triton")))


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


def assert_near(got: Tensor, want: Tensor, room: float, what: object) -> None:
    room *= max(1.0, want.abs().max().item())
    torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=room, msg=lambda m: f"{what}: {m}")


ROOM = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def compare(name, options, shape, dtype, layout, training, switch="layers") -> tuple[list[str], list[str]]:
    """The layer against its plain form in float64: output, all gradients, buffers. Returns the kernels run each way."""
    os.environ[kernels.SWITCH] = switch
    layer = randomized(name, shape[1], **options).train(training)
    layer = layer.double() if dtype == torch.float64 else layer
    twin = copy.deepcopy(layer).double()
    x = images(*shape).to(dtype).to(memory_format=layout).requires_grad_()
    exact = x.detach().double().requires_grad_()
    weights = images(*shape, seed=2).to(dtype)
    taken()
    with record_ratios(nn.Sequential(layer)) as got_ratios, record_ratios(nn.Sequential(twin)) as ratios:
        y, expected = layer(x), twin.plain(exact)
    forward = taken()
    y.backward(weights), expected.backward(weights.double())
    assert y.dtype == dtype and y.is_contiguous(memory_format=layout)
    assert_near(y, expected, ROOM[dtype], "output")
    assert_near(x.grad, exact.grad, ROOM[dtype], "input")
    room = 2e-3 if dtype in (torch.bfloat16, torch.float16) else ROOM[dtype]
    for (key, got), want in zip(layer.named_parameters(), twin.parameters(), strict=True):
        assert (got.grad is None) == (want.grad is None), key
        if want.grad is not None:
            assert_near(got.grad, want.grad, room, key)
    for (key, got), want in zip(layer.named_buffers(), twin.buffers(), strict=True):
        assert_near(got, want, room, key)
    for key, want in ratios.items():
        assert_near(got_ratios[key], want, room, f"ratios of {key}")
    return forward, taken()


def small_gate(name, options):
    return {"hidden": 2, **options} if name == "en" else options


@every_case
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_output_gradients_averages_and_ratios_are_those_of_the_plain_form(interpreted, case, training):
    name, options = case
    shape, layout = ((3, 6, 3, 4), FORMATS[0]) if training else ((2, 6, 2, 3), FORMATS[1])
    forward, backward = interpreted(compare, name, small_gate(name, options), shape, torch.float64, layout, training)
    if name == "bn":  # torch's own kernel, unless the average is one that it does not have
        assert bool(forward) == (training and "momentum" in options)
        return
    assert {"moments", "coefficients", "affine"} <= set(forward)
    assert {"gradient_sums", "pool_gradients", "moment_gradients", "input_gradient"} <= set(backward)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(torch.float32, FORMATS[1]), (torch.bfloat16, FORMATS[1]), (torch.float16, FORMATS[0])],
    ids=str,
)
def test_every_type_and_layout_gives_what_the_plain_form_gives(interpreted, name, dtype, layout):
    interpreted(compare, name, small_gate(name, {}), (2, 5, 3, 5), dtype, layout, True)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 58, 1, 1), (1, 3, 7, 7), (2, 70, 2, 2)], ids=str)
def test_every_size_gives_what_the_plain_form_gives(interpreted, shape):
    options = {"normalizers": ["bn", "in", "ln", "gn"], "reduction": 5, "hidden": 3}
    interpreted(compare, "en", options, shape, torch.float32, FORMATS[1], True)


def compare_in_small_tiles(options) -> None:
    from en.norm.kernels.gpu import layer, small

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small, "first_of_its_kind", lambda small: small)  # whose tiles are of the sizes before
        patch.setattr(layer, "SAMPLES", 2)
        for name, size in {"CELLS": 16, "GRADIENT_CELLS": 16, "UNITS": 8}.items():
            patch.setattr(small, name, size)
        compare("en", options, (3, 21, 2, 2), torch.float64, FORMATS[1], True)


@pytest.mark.parametrize(
    "options",
    [{"reduction": 21}, {"convolution": False}, {"ratios": "pooled"}, {"mix": "statistics", "reduction": 7}],
    ids=str,
)
def test_more_samples_channels_and_hidden_units_than_a_tile_holds_are_walked_over(interpreted, options):
    every = {"normalizers": ["bn", "in", "ln", "gn"], "groups": 3, "hidden": 3}
    interpreted(compare_in_small_tiles, {**every, **options})


@pytest.mark.parametrize("name", ["bn", *WHOLE])
def test_the_passes_alone_have_autograd_between_them(interpreted, name):
    options = {"momentum": None} if name == "bn" else small_gate(name, {})
    forward, backward = interpreted(compare, name, options, (2, 6, 3, 3), torch.float32, FORMATS[1], True, "passes")
    assert forward == ["moments", "affine"] and backward == ["gradient_sums", "input_gradient"]


def test_switched_off_nothing_runs_in_triton(interpreted):
    for name in WHOLE:
        ran = interpreted(compare, name, small_gate(name, {}), (2, 6, 3, 3), torch.float32, FORMATS[0], True, "0")
        assert ran == ([], [])


def launches(name, options, shape) -> tuple[int, int]:
    forward, backward = compare(name, options, shape, torch.float64, FORMATS[1], True)
    return len(forward), len(backward)


@pytest.mark.parametrize("name", WHOLE)
def test_a_layer_takes_at_most_six_launches_forward_and_eight_backward(interpreted, name):
    options = {"normalizers": ["bn", "in", "ln", "gn"], "hidden": 1} if name == "en" else {}
    cut = (1, 2, 90, 91)
    assert blocks.cut(*cut[:2], 90 * 91, True).splits > 1  # so that parts are merged, too
    forward, backward = interpreted(launches, name, options, cut)
    assert forward <= 6 and backward <= 8
    assert (forward, backward) == {"in": (4, 5), "ln": (5, 5), "gn": (5, 5), "sn": (5, 7), "ssn": (5, 7), "en": (5, 7)}[
        name
    ]


# ---- the passes by themselves ----


def compare_passes(shape, dtype, layout) -> None:
    run = gpu.triton_passes()
    x, dy = (images(*shape, seed=seed).to(dtype).to(memory_format=layout) for seed in (1, 2))
    exact, exact_dy = x.double(), dy.double()
    stats, expected = run.moments(x), in_torch.moments(exact)
    room = 1e-11 if dtype == torch.float64 else 1e-5
    assert_near(stats[:2], expected[:2], room, "moments")
    a, b, c, d = torch.randn(4, *shape[:2], generator=torch.Generator().manual_seed(3)).to(stats.dtype)
    wide = [part.double() for part in (a, b, c, d)]
    y = run.affine(x, stats, a, b)
    assert y.dtype == dtype and y.stride() == x.stride()
    assert_near(y, in_torch.affine(exact, expected, *wide[:2]), ROOM[dtype] / 2, "affine")
    sums, expected_sums = run.gradient_sums(dy, x, stats), in_torch.gradient_sums(exact_dy, exact, expected)
    assert_near(sums, expected_sums, room, "gradient sums")
    got = run.input_gradient(dy, x, stats, sums[0], a, c, d)
    want = in_torch.input_gradient(exact_dy, exact, expected, expected_sums[0], wide[0], *wide[2:])
    assert got.stride() == x.stride()
    assert_near(got, want, ROOM[dtype] / 2, "input gradient")


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_four_passes_give_what_torchs_operations_give(interpreted, shape, dtype, layout):
    interpreted(compare_passes, shape, dtype, layout)


def compare_far_from_zero(shape, layout, spread, outlier) -> None:
    x = (1e4 + spread * images(*shape)).to(memory_format=layout)
    x[:, :, 0, 0] += outlier
    exact = x.double()
    var, mean = torch.var_mean(exact, (2, 3), correction=0)
    stats = gpu.triton_passes().moments(x)
    torch.testing.assert_close(stats[1].double(), var, rtol=1e-4, atol=0)
    centre = stats[2].double() + stats[3].double()  # the mean to far more digits than float32 has at 1e4
    assert ((centre - mean).abs() <= 1e-4 * var.sqrt()).all()
    scale = var.rsqrt().float()
    y = gpu.triton_passes().affine(x, stats, scale, torch.zeros_like(scale))
    expected = (exact - mean[..., None, None]) * var.rsqrt()[..., None, None]
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("outlier", [0.0, -1e4])
@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (1, 2, 90, 91)], ids=str)
def test_a_huge_mean_with_a_small_spread_stays_accurate(interpreted, shape, outlier, layout):
    for spread in (1.0, 1e-2):
        interpreted(compare_far_from_zero, shape, layout, spread, outlier)


def check_constant() -> None:
    stats = gpu.triton_passes().moments(torch.full((2, 3, 5, 7), 1234.567))
    assert torch.equal(stats[1], torch.zeros(2, 3)) and torch.equal(stats[0], torch.full((2, 3), 1234.567))


def test_a_constant_cell_has_no_variance_at_all(interpreted):
    interpreted(check_constant)


# ---- gradients, averages, choices ----


def check_wanted_gradients(name) -> None:
    options, x = small_gate(name, {}), images(2, 6, 3, 3)
    full = randomized(name, 6, **options)
    reference = torch.autograd.grad(full(x.requires_grad_()).square().sum(), [x, *full.parameters()])
    frozen = randomized(name, 6, **options).requires_grad_(False)
    assert torch.equal(torch.autograd.grad(frozen(x).square().sum(), x)[0], reference[0])
    alone = randomized(name, 6, **options)
    taken()
    loss = alone(x.detach()).square().sum()
    loss.backward(retain_graph=True)
    assert "input_gradient" not in taken()
    loss.backward()  # a second time through the same graph adds the same gradients
    for parameter, expected in zip(alone.parameters(), reference[1:], strict=True):
        torch.testing.assert_close(parameter.grad, 2 * expected)
    twin = copy.deepcopy(full)
    first = [
        torch.autograd.grad(y.square().sum(), [x, model.weight], create_graph=True)
        for y, model in ((full(x), full), (twin.plain(x), twin))
    ]
    torch.testing.assert_close(*first, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(full.eval()(x), full.plain(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", WHOLE)
def test_gradients_flow_where_they_are_wanted_once(interpreted, name):
    interpreted(check_wanted_gradients, name)


def check_averages(momentum) -> None:
    layer = build_norm("sn", 4, momentum=momentum)
    twin = copy.deepcopy(layer)
    for seed in range(3):
        layer(images(2, 4, 3, 3, seed=seed)), twin.plain(images(2, 4, 3, 3, seed=seed))
    assert layer.num_batches_tracked.item() == 3
    for (name, got), want in zip(layer.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(got, want, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("momentum", [0.1, None, 0, 1])
def test_running_averages_are_those_of_the_plain_form_after_several_batches(interpreted, momentum):
    interpreted(check_averages, momentum)


def check_others() -> None:
    layer, x = randomized("sn", 6), images(2, 6, 3, 3)
    taken()
    copy.deepcopy(layer).double().eval()(x)  # parameters of another type than the moments
    assert set(taken()) == {"moments", "affine"}
    assert layer(x[:0]).shape == (0, 6, 3, 3) and not taken()
    torch.func.vmap(layer.eval())(x[None])
    assert not taken()


def test_what_the_kernels_do_not_know_runs_in_the_other_forms(interpreted):
    interpreted(check_others)


# ---- how passes are cut ----

IMAGENET = [(64, 112), (64, 56), (256, 56), (128, 28), (512, 28), (256, 14), (1024, 14), (512, 7), (2048, 7)]


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels_last"])
def test_every_layer_of_an_imagenet_network_keeps_all_processors_of_a_gpu_busy(channels_last):
    for batch in (64, 256):
        for channels, side in IMAGENET:
            cut = blocks.cut(batch, channels, side * side, channels_last)
            assert cut.programs >= 4 * batch >= 256, (batch, channels, side, cut)


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels_last"])
def test_programs_cover_every_value_and_none_is_idle(channels_last):
    for n, c, pixels in [(1, 1, 1), (1, 3, 2048 * 1024), (3, 58, 49), (256, 2048, 49), (7, 130, 3721), (1, 24, 9999)]:
        for tile in (blocks.TILE, blocks.TILE // 2):
            cut = blocks.cut(n, c, pixels, channels_last, tile)
            length = cut.tiles * cut.pixel_block
            assert (cut.splits - 1) * length < pixels <= cut.splits * length
            assert (cut.cell_blocks - 1) * cut.cell_block < cut.cells <= cut.cell_blocks * cut.cell_block
            assert cut.outer * cut.cells == n * c and cut.cell_block * cut.pixel_block <= tile
            assert cut.splits <= blocks.SPLITS and (c if channels_last else pixels) % cut.unit == 0


def far_offsets(samples, channels, pixels, channels_last) -> list[int]:
    cut = blocks.cut(samples, channels, pixels, channels_last)
    out = torch.zeros(cut.programs, dtype=torch.int64)
    length = cut.tiles * cut.pixel_block
    first_offsets[(cut.programs,)](
        *(out, cut.cells, cut.pixels, cut.cell_blocks, cut.splits, length),
        CELLS=cut.cell_block,
        CHANNELS_LAST=channels_last,
    )
    return out.tolist()


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels_last"])
def test_a_tile_is_found_beyond_two_to_the_31_values(interpreted, channels_last):
    n, c, pixels = 3, 4, 2**28 + 3
    cut = blocks.cut(n, c, pixels, channels_last)
    assert n * c * pixels > 2**31
    expected = []
    for outer in range(cut.outer):
        for split in range(cut.splits):
            for block in range(cut.cell_blocks):
                cell, pixel = block * cut.cell_block, split * cut.tiles * cut.pixel_block
                expected.append((outer * pixels + pixel) * c + cell if channels_last else cell * pixels + pixel)
    assert max(expected) > 2**31 and interpreted(far_offsets, n, c, pixels, channels_last) == expected


# ---- on a GPU ----


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


def test_only_the_process_of_the_checks_interprets(interpreted):
    assert interpreted(os.getenv, INTERPRET) == "1" and INTERPRET not in os.environ
