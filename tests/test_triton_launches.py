"""The normalizers' Triton kernels as a GPU gets them: compiled without one, and launched on one that takes notes."""

import concurrent.futures
import contextlib
import functools
import io
import re
import warnings
from collections.abc import Iterator
from functools import partial
from itertools import combinations

import pytest
import torch
from norm_cases import images, randomized
from torch import Tensor, nn
from triton_process import TYPES, process

from en.norm.kernels.gpu import device as gpu
from en.norm.statistics import moments_dtype

cuda_driver = pytest.importorskip("cuda_driver")  # which needs Triton


SHAPE = (3, 8, 4, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("driver")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    yield from process(TRITON_CACHE_DIR=str(tmp_path_factory.mktemp("triton")))


def compile_for_gpu(name, options, shape, dtype, training, layout=torch.channels_last) -> dict[str, str]:
    """Compiles what a layer would launch on an H100; its tensors have no memory, so nothing can wait for them."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_kernel

    from en.norm.kernels.gpu import layer as layers

    kinds = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}
    kinds |= {torch.int64: "i64", torch.int32: "i32"}
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

    layer = randomized(name, shape[1], **options).train(training).to("meta", moments_dtype(dtype))
    x = torch.empty(shape, dtype=dtype, device="meta").to(memory_format=layout)
    plan = layer.native_plan(pixels=1024)
    ready = layers.ready_for(plan, x)
    kept, work, more = (
        memory.views(x.new_empty(memory.size, dtype=ready.dtype))
        for memory in (ready.kept, ready.forward_work, ready.backward_work)
    )
    layers.forward(ready, plan.running, x, x, plan.parameters, ready.counters(x), build, [kept, work])
    layers.backward(ready, x, x, x, plan.parameters, plan.parameters, True, build, [kept, more])
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
    forward = ["moments", "pool", "coefficients", "affine"]
    assert list(code) == [*forward, "layer_sums", "pool_gradients", "layer_input_gradient"]
    if shape[1] % 16 == 0:
        for kernel in ("moments", "affine", "layer_sums", "layer_input_gradient"):
            assert "ld.global.v4.b32" in code[kernel], kernel
        assert "st.global.v4.b32" in code["affine"] and "st.global.v4.b32" in code["layer_input_gradient"]
    # What a sample's last program reads has been stored by all threads of the others before these said so.
    steps = r"st\.global.*bar\.sync.*atom\.global\.gpu\.acq_rel\.add\.u32.*bar\.sync.*ld\.global"
    assert re.search(steps, code["layer_sums"], re.DOTALL)
    assert re.search(r"bar\.sync[^;]*;(?:(?!st\.global).)*atom\.global", code["layer_sums"], re.DOTALL)


@functools.cache
def driver_of(folder) -> "cuda_driver.Driver":
    return cuda_driver.Driver(folder)


@contextlib.contextmanager
def noting(folder) -> Iterator["cuda_driver.Driver"]:
    """Has Triton launch on a driver that notes launches, and this package remember none of before."""
    from triton.runtime.driver import driver

    from en.norm.kernels.gpu import launches, ready

    launches.compiled.clear(), launches.slow.clear(), ready.known.clear()
    taking_notes = driver_of(folder)
    taking_notes.launches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "works", lambda device, dtype: True)
        patch.setattr(launches, "SLOW_S", 0)
        driver.set_active(taking_notes)
        try:
            yield taking_notes
        finally:
            driver.set_active(None)


def placeless(launches) -> list[tuple[object, ...]]:
    """Launches without the addresses, of which only the alignment remains, and without who asked for them."""
    return [
        (
            *each[:5],
            *(f"at {part % 16}" if size == 8 else part for part, size in zip(each.values, each.sizes, strict=True)),
        )
        for each in launches
    ]


def relaunched(folder, name, shape) -> dict[str, tuple[list[tuple[object, ...]], int, bool]]:
    """Launches a layer on x, again, on an x in another place, on one of another size, and with a hook on launches.

    Returns: the launches, how many kernels Triton had to find, and whether all were launched without Triton.
    """
    from triton import knobs
    from triton.runtime.jit import JITFunction

    layer, found, x = randomized(name, shape[1]), {}, images(*shape)
    places = torch.empty(x.numel() + 1)[1:].view(shape).copy_(x)
    anew: list[str] = []
    run = JITFunction.run
    ways = {"first": x, "again": x, "unaligned": places, "fewer": x[1:].clone(), "last": x, "watched": x}
    with noting(folder) as driver, pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", lambda self, *a, **k: anew.append(self.__name__) or run(self, *a, **k))
        try:
            for way, given in ways.items():
                anew.clear()
                if way == "watched":
                    knobs.runtime.launch_enter_hook.add(print)
                layer(given.requires_grad_()).sum().backward()
                launches = driver.launches()
                found[way] = placeless(launches), len(anew), not any(each.by_triton for each in launches)
        finally:
            knobs.runtime.launch_enter_hook.remove(print)
    return found


def with_errors(check, *arguments):
    """Returns what a check returns, and what it wrote on stderr."""
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        return check(*arguments), errors.getvalue()


def test_a_launch_that_is_like_an_earlier_one_skips_triton_and_gives_the_same_arguments(compiled, folder):
    found, told = compiled(with_errors, relaunched, folder, "en", SHAPE)
    assert told.count("en.norm compiles Triton's kernels") == 1
    first, anew, again = found["first"]
    assert anew == len(first) == 7 and not again
    assert found["again"] == (first, 0, True) == found["last"]
    assert found["watched"] == (first, 0, False)
    unaligned, anew, again = found["unaligned"]
    reads_x = {"moments", "affine", "layer_sums", "layer_input_gradient"}
    assert anew == len(reads_x) and not again and [note[0] for note in unaligned] == [note[0] for note in first]
    assert all((note in first) == (note[0] not in reads_x) for note in unaligned)
    fewer, anew, again = found["fewer"]
    assert anew == len(fewer) == 7 and not any(note in first for note in fewer)


def addresses(folder, name, shape, dtype) -> list[tuple[list[object], list[object]]]:
    """Collects what a layer launches each way on tensors like earlier ones, by Triton and by C++."""
    from en.norm.kernels.gpu import launches
    from en.norm.kernels.gpu import layer as layers

    layer = randomized(name, shape[1])
    layer = layer.double() if dtype == torch.float64 else layer
    x = images(*shape).to(dtype)
    plan = layer.native_plan(pixels=1024)
    ready = layers.Ready(plan, x)
    memories = ready.kept, ready.forward_work, ready.backward_work

    def tensors():
        """x, y, dy, dx, memory, parameters, their gradients, averages and counters, in places of their own."""
        values = [torch.empty_like(x) for _ in range(4)]
        memory = [x.new_empty(memory.size, dtype=ready.dtype) for memory in memories]
        parameters, grads = ([torch.empty_like(part) for part in plan.parameters] for _ in range(2))
        averages = tuple(part.clone() for part in plan.running) if plan.running else None
        return *values, *memory, parameters, grads, averages, [part.clone() for part in ready.counters(x)]

    def ways(x, y, dy, dx, kept, work, more, parameters, grads, averages, counters):
        forth = (x, y, kept, work, *counters, *parameters, *(averages or ()))
        back = (x, dy, kept, more, *parameters, *grads, dx)
        of_forward = (kept, memories[0]), (work, memories[1])
        of_backward = (kept, memories[0]), (more, memories[2])
        yield "forward", forth, of_forward, partial(layers.forward, ready, averages, x, y, parameters, counters)
        yield "back", back, of_backward, partial(layers.backward, ready, x, dy, dx, parameters, grads, True)

    found = []
    with noting(folder) as driver:
        for key, given, blocks, body in ways(*tensors()):
            assert not ready.launch_again(key, given)
            ready.launch(key, given, blocks, body)
        for key, given, blocks, body in ways(*tensors()):
            driver.launches()
            body(launches.launch, [memory.views(block) for block, memory in blocks])
            expected = driver.launches()
            assert ready.launch_again(key, given)
            found.append((expected, driver.launches()))
    return found


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [("en", (2, 6, 5, 5), torch.float32), ("sn", (1, 3, 90, 91), torch.bfloat16), ("in", (2, 3, 4, 4), torch.float64)],
    ids=str,
)
def test_a_layer_launched_by_cpp_launches_what_triton_would_on_the_new_tensors(compiled, folder, name, shape, dtype):
    for expected, again in compiled(addresses, folder, name, shape, dtype):
        assert len(expected) == len(again) >= 3
        for one, other in zip(expected, again, strict=True):
            assert one[:5] == other[:5] and one.by_triton and not other.by_triton
            # A tensor without values, which has no address, gets the place where it would lie.
            assert all(a in (b, 0) for a, b in zip(one.values, other.values, strict=True)), one.name


def by_thread_and_failure(folder) -> tuple[list[bool], list[bool], str]:
    """Who launches a layer on a thread without a context, and on it again, and what is raised where a launch fails."""
    layer, x = randomized("en", 8), images(*SHAPE)
    with noting(folder) as driver, concurrent.futures.ThreadPoolExecutor(1) as thread:

        def by_triton() -> list[bool]:
            layer(x)
            return [each.by_triton for each in driver.launches()]

        by_triton()
        first, again = thread.submit(by_triton).result(), thread.submit(by_triton).result()
        driver.library.fail_launches(700)
        try:
            with pytest.raises(RuntimeError) as failure:
                layer(x)
        finally:
            driver.library.fail_launches(0)
    return first, again, str(failure.value)


def test_a_thread_without_a_context_is_left_to_triton_and_an_error_of_the_driver_is_raised(compiled, folder):
    first, again, told = compiled(by_thread_and_failure, folder)
    assert len(first) == len(again) == 4 and all(first) and not any(again)
    assert "the driver's error 700 at a launch" in told


def agreed(folder) -> list[bool]:
    """Asks the driver of a program as it is, and with a parameter of another size, more or less."""
    from en.norm.kernels.gpu import host, ready

    with noting(folder):
        layer, x = randomized("en", 8), images(*SHAPE)
        with torch.device("meta"):  # a default device is not a program's
            layer(x)
        (known,) = ready.known.values()
        program = known._programs["forward"].numbers.tolist()
        head, count = program[:8], program[7]  # of the first launch; three numbers a parameter follow
        parts, rest = program[8 : 8 + 3 * count], program[8 + 3 * count :]
        changed = [[*head, *parts[:at], 12 - parts[at], *parts[at + 1 :], *rest] for at in range(0, 3 * count, 3)]
        changed.append([*head[:7], count + 1, *parts, 8, -1, 0, *rest])
        changed.append([*head[:7], count - 1, *parts[:-3], *rest])
        return [host.agrees(torch.tensor(numbers)) for numbers in (program, *changed)]


def test_a_program_whose_parameters_are_not_those_of_its_kernels_is_not_launched(compiled, folder):
    as_it_is, *changed = compiled(agreed, folder)
    assert as_it_is and len(changed) > 5 and not any(changed)


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
