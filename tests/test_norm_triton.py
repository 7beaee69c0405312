"""The normalizers' Triton kernels against the plain form in float64, in Triton's interpreter: there is no GPU here."""

import copy
import os
from itertools import product

import pytest
import torch
from norm_cases import every_case, images, randomized
from torch import Tensor, nn
from triton_process import INTERPRET, TYPES, process, taken

from en.norm import build_norm, kernels, record_ratios
from en.norm.kernels import passes as in_torch
from en.norm.kernels.gpu import blocks
from en.norm.kernels.gpu import device as gpu

pytest.importorskip("triton")

FORMATS = [torch.contiguous_format, torch.channels_last]
SHAPES = [  # the last two are cut into several programs along their pixels
    (2, 3, 5, 5),
    (3, 16, 7, 7),
    (2, 58, 1, 1),
    (3, 1, 2, 3),
    (2, 24, 9, 40),
    (1, 130, 3, 3),
    (1, 1, 120, 130),
    (1, 3, 90, 91),
]
WHOLE = ["in", "ln", "gn", "sn", "ssn", "en"]

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


@pytest.fixture(scope="module")
def interpreted():
    yield from process(**{INTERPRET: "1"})


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
    if options.get("ratios") in ("relative", "pooled"):
        assert forward == ["moments", "affine"] and backward == ["gradient_sums", "input_gradient"]
        return
    assert {"moments", "coefficients", "affine"} <= set(forward)
    assert {"pool_gradients", "layer_input_gradient"} < set(backward)


def compare_trained_on_smaller_maps(name, options) -> None:
    os.environ[kernels.SWITCH] = "layers"
    layer = randomized(name, 6, min_pixels=20, **options).eval()
    layer.fix_pixels(16)
    twin, x = copy.deepcopy(layer).double(), images(2, 6, 4, 5)
    taken()
    with record_ratios(nn.Sequential(layer)) as ratios:
        y = layer(x)
    assert taken() and all(not of_layer[:, 1].any() for of_layer in ratios.values())
    assert_near(y, twin.plain(x.double()), ROOM[torch.float32], "output")


@pytest.mark.parametrize(("name", "options"), [("en", {"gate_pixels": 20}), ("sn", {})], ids=["en", "sn"])
def test_layers_mix_at_another_size_what_they_mixed_in_training(interpreted, name, options):
    interpreted(compare_trained_on_smaller_maps, name, options)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(torch.float32, FORMATS[1]), (torch.bfloat16, FORMATS[1]), (torch.float16, FORMATS[0])],
    ids=str,
)
def test_every_type_and_layout_gives_what_the_plain_form_gives(interpreted, name, dtype, layout):
    interpreted(compare, name, small_gate(name, {}), (2, 5, 3, 5), dtype, layout, True)


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 58, 1, 1), (1, 3, 7, 7), (2, 70, 2, 2)], ids=str)
def test_every_size_gives_what_the_plain_form_gives(interpreted, shape):
    options = {"normalizers": ["bn", "in", "ln", "gn"], "reduction": 5, "hidden": 3}
    interpreted(compare, "en", options, shape, torch.float32, FORMATS[1], True)


def compare_in_small_tiles(options) -> None:
    from en.norm.kernels.gpu import ready, small

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ready, "known", {})
        for name, size in {"CELLS": 16, "GRADIENT_CELLS": 16, "UNITS": 8, "SAMPLES": 2}.items():
            patch.setattr(small, name, size)
        compare("en", options, (3, 21, 2, 2), torch.float64, FORMATS[1], True)


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": 21},
        {"convolution": False},
        {"mix": "statistics", "reduction": 7},
    ],
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
def test_a_layer_takes_at_most_seven_launches(interpreted, name):
    options = {"normalizers": ["bn", "in", "ln", "gn"], "hidden": 1} if name == "en" else {}
    cut = (1, 2, 90, 91)
    assert blocks.cut(*cut[:2], 90 * 91, True).splits > 1
    for shape in ((2, 3, 5, 5), cut):
        assert interpreted(launches, name, options, shape) == (3 if name == "in" else 4, 3)


def in_orders(shape, layout) -> list[list[Tensor]]:
    """Output and gradients by a layer whose programs run in their own order, backwards, and in a random one."""
    from triton.runtime.interpreter import interpreter_builder

    begin, found = interpreter_builder.set_grid_idx, []
    for order in ("own", "backwards", "random"):

        def place(x, y, z, order=order):
            programs = interpreter_builder.grid_dim[0]
            shuffled = torch.randperm(programs, generator=torch.Generator().manual_seed(0))
            begin({"own": x, "backwards": programs - 1 - x, "random": int(shuffled[x])}[order], y, z)

        layer, x = randomized("en", shape[1], hidden=2), images(*shape).to(memory_format=layout).requires_grad_()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(interpreter_builder, "set_grid_idx", place)
            for _ in range(2):
                y = layer(x)
                found.append([y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], x)])
    return found


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((2, 40, 3, 3), torch.channels_last), ((2, 2, 65, 66), torch.contiguous_format)],
    ids=str,
)
def test_which_program_of_a_sample_is_the_last_changes_no_bit(interpreted, shape, layout):
    first, *others = interpreted(in_orders, shape, layout)
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


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


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [*product([torch.float32], SHAPES), *product([each for each in TYPES if each != torch.float32], SHAPES[1:5:3])],
    ids=str,
)
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
    assert "layer_input_gradient" not in taken()
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


def test_only_the_process_of_the_checks_interprets(interpreted):
    assert interpreted(os.getenv, INTERPRET) == "1" and INTERPRET not in os.environ
