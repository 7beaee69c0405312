"""Runs that begin with other weights than their seed's, under a head of their own: every tensor accounted for."""

import copy
import io
import json
import os
import re
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from commands import ROOT, command, last_json, refused, succeed
from conftest import write_folders
from kill_loop import rows
from norm_cases import PHOTOS, every_norm, images, network
from safetensors.torch import save_file
from timm import create_model
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import Tensor, nn

from en.config.reading import load_config
from en.errors import UserError
from en.models import build_model
from en.models.transfer import Transfer, transfer, within
from en.norm import NORMALIZERS, norm_options, replace_norm
from en.runs import checkpoint
from en.runs.contents import Checkpoint
from en.runs.weights import read_weights
from en.tasks.classification import Classification
from en.training.run import TrainingRun
from en.training.signals import StopRequest

RECIPE = """
model: {name: timm/resnet10t, options: {channels: [16, 32, 64, 128], stem_width: 8}}
norm: {name: bn}
data: {root: unset, loader: folder, resolution: 32, workers: 0}
train: {epochs: 1, batch_size: 24, ema_decay: 0.7}
optim: {lr: 0.05}
device: cpu
"""
HEAD = ("fc.weight", "fc.bias")
BEGINS = [name for name in NORMALIZERS if "start" in norm_options(name)]


@pytest.fixture(scope="module")
def three(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of three of the four classes."""
    root = tmp_path_factory.mktemp("three") / "clothes"
    shutil.copytree(folders, root)
    for split in ("train", "val"):
        shutil.rmtree(min((root / split).iterdir()))
    return root


@pytest.fixture(scope="module")
def trained(recipe: Path, folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four classes with batch normalization."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    succeed("train.py", recipe, f"data.root={folders}", f"run_dir={run}", "train.epochs=2")
    return run


def begun(recipe: Path, data: Path, *overrides: object) -> TrainingRun:
    """A run before its first step."""
    config = load_config(str(recipe), [f"data.root={data}", *map(str, overrides)])
    run = TrainingRun(config, "recipe.yaml", StopRequest())
    run.train_images.close()
    run.val_images.close()
    return run


def train(recipe: Path, data: Path, run: Path, *overrides: object, ranks: int = 0) -> tuple[Checkpoint, str]:
    done = succeed("train.py", recipe, f"data.root={data}", f"run_dir={run}", *overrides, ranks=ranks)
    return checkpoint.load(run / "last.pt"), done.stderr


def init_of(run: Path, start: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "provenance.json").read_text())["starts"][start].get("init", {})
    return found


# ---- tensors ----


def plain_classifier(classes: int) -> nn.Sequential:
    return nn.Sequential(network(), nn.Flatten(), nn.Linear(4 * 28 * 28, classes))


def classifier(classes: int, name: str = "bn", **options: object) -> nn.Sequential:
    return replace_norm(plain_classifier(classes), name, **options)


@every_norm
@pytest.mark.parametrize("classes", [3, 5])
def test_all_but_another_head_is_taken_by_every_normalizer_from_its_own_weights(name, classes):
    source, target = classifier(3, name), classifier(classes, name)
    source(PHOTOS)
    weights, before = source.state_dict(), copy.deepcopy(target.state_dict())
    found = transfer(target, weights, ["2"], same_head=True)
    head = [] if classes == 3 else ["2.weight", "2.bias"]
    assert found == Transfer([key for key in weights if key not in head], head, head)
    for key, value in target.state_dict().items():
        assert torch.equal(value, before[key] if key in head else weights[key]), key


@pytest.mark.parametrize("name", BEGINS)
def test_normalizers_that_begin_on_batch_normalization_take_its_weights_over(name):
    source, target = plain_classifier(3), classifier(5, name, start="bn")
    for seed in range(3):
        source(images(4, 3, 32, 32, seed=seed))
    found = transfer(target, source.state_dict(), ["2"], same_head=True)
    assert found.fresh == found.dropped == ["2.weight", "2.bias"] and "0.1.running_var" in found.taken
    expected, warm = (model[0].eval()(PHOTOS) for model in (source, target))
    cold = replace_norm(copy.deepcopy(source), name)[0](PHOTOS)
    assert 0 < (warm - expected).norm() < 0.5 * (cold - expected).norm()


@pytest.mark.parametrize("name", [name for name in NORMALIZERS if name != "bn"])
def test_other_normalizers_do_not_take_weights_of_batch_normalization(name):
    target, source = classifier(3, name), classifier(3)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(
        ValueError, match=rf"^weights of batch normalization for 0\.1, a {NORMALIZERS[name].__name__}: "
    ):
        transfer(target, source.state_dict(), ["2"], same_head=True)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_a_head_that_names_other_things_is_not_taken_however_well_it_fits():
    source, target = classifier(3), classifier(3)
    head = target[2].weight.clone()
    assert transfer(target, source.state_dict(), ["2"], same_head=False).fresh == ["2.weight", "2.bias"]
    assert torch.equal(target[2].weight, head) and torch.equal(target[0][0].weight, source[0][0].weight)


def test_a_network_within_another_takes_what_has_no_head():
    source, target = classifier(3), network()
    body = {key.removeprefix("0."): value for key, value in source.state_dict().items()}
    found = transfer(target, body, ["2"], same_head=True)
    assert found.dropped == ["2.weight", "2.bias"] and found.fresh == []


WRONG = [
    (lambda w: w.pop("0.0.weight"), r"^0\.0\.weight is missing: expected \(6, 3, 3, 3\)"),
    (lambda w: w.pop("0.1.bias"), r"^0\.1\.bias is missing: expected \(6,\)|^0\.1\.bias is missing: expected \(18,\)"),
    (lambda w: w.update({"9.bias": torch.zeros(1)}), r"^9\.bias: no such parameter or buffer in this Sequential"),
    (lambda w: w.update({"0.0.weight": torch.zeros(2)}), r"^0\.0\.weight has shape \(2,\): expected"),
    (lambda w: w["0.3.weight"].fill_(torch.nan), r"^0\.3\.weight is not finite"),
    (lambda w: w.update({"0.3.weight": w["0.3.weight"].long()}), r"^0\.3\.weight is of torch\.int64: expected torch"),
    (lambda w: w.update({"0.3.weight": w["0.3.weight"].to_sparse()}), r"^0\.3\.weight is a torch\.sparse_coo tensor"),
]  # fmt: skip


@pytest.mark.parametrize("name", ["bn", "gn", "en"])
@pytest.mark.parametrize(("spoil", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_does_not_fit_outside_the_head_is_refused_by_name_and_changes_nothing(name, spoil, words):
    target, weights = classifier(3, name), copy.deepcopy(classifier(5, name).state_dict())
    spoil(weights)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(ValueError, match=words):
        transfer(target, weights, ["2"], same_head=True)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_weights_of_other_options_are_refused_by_their_layer():
    target, weights = classifier(3, "sn", min_pixels=1), classifier(3, "sn").state_dict()
    with pytest.raises(ValueError, match=r"0\.1: weights of min_pixels=65 for a layer of min_pixels=1"):
        transfer(target, weights, ["2"], same_head=True)


NETWORKS = ["resnet18", "mnasnet0_5", "densenet121", "efficientnet_b0", "mobilenet_v3_small", "shufflenet_v2_x0_5",
            "regnet_y_400mf", "googlenet", "timm/mobilenetv3_small_050", "timm/ghostnet_050"]  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_a_librarys_network_keeps_all_but_its_classifier(name):
    library = build_model(name, 1000)  # batch normalization under the library's names
    model = build_model(name, 7, "en", {"start": "bn"})
    head = Classification().head(model)
    found = transfer(model, library.state_dict(), head, same_head=True)
    assert found.fresh == found.dropped == within(model.state_dict(), head) and 0 < len(found.fresh) <= 2
    assert len(found.taken) + len(found.dropped) == len(library.state_dict())


# ---- files ----


def wrapped(kind: str, model: nn.Module, folder: Path) -> Path:
    """A file of a network's weights, as programs leave them."""
    path, plain = folder / f"{kind}.pth", model.state_dict()
    if kind == "safetensors":
        save_file({name: value.contiguous() for name, value in plain.items()}, folder / "weights.safetensors")
        return folder / "weights.safetensors"
    if kind == "timm":
        arguments = Namespace(model="resnet10t", lr=[0.1], data=None)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        CheckpointSaver(model, optimizer, args=arguments, checkpoint_dir=str(folder)).save_checkpoint(1)
        return folder / "last.pth.tar"
    state: dict[str, Any] = {
        "plain": plain,
        "torchvision": {"model": plain, "epoch": 3, "args": Namespace(lr=0.1)},
        "compiled": torch.compile(model).state_dict(),
        "with a config": {"model": plain, "config": {"MODEL": "resnet10t"}},
        "ddp": {"state_dict": nn.DataParallel(torch.compile(model)).state_dict()},
        "lightning": {"epoch": 1, "state_dict": {f"model.{name}": value for name, value in plain.items()}},
        "old": {name: value for name, value in plain.items() if not name.endswith("num_batches_tracked")},
    }[kind]
    torch.save(state, path, _use_new_zipfile_serialization=kind != "old")
    return path


KINDS = ["plain", "torchvision", "timm", "compiled", "with a config", "ddp", "lightning", "old", "safetensors"]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_found_in_what_programs_leave_under_the_networks_own_names(kind, tmp_path):
    model = network()
    model(PHOTOS)
    given = read_weights(str(wrapped(kind, model, tmp_path)))
    expected = {key: value for key, value in model.state_dict().items() if key in given.state}
    assert all(torch.equal(given.state[key], value) for key, value in expected.items())
    assert len(expected) == len(given.state) == len(model.state_dict()) - 2 * (kind == "old")
    assert not given.averaged and given.saved is None and len(given.digest) == 64


def test_averages_are_taken_where_timm_or_torchvision_keep_them(tmp_path):
    model = network()
    ema, swa = ModelEmaV3(model, decay=0.5), torch.optim.swa_utils.AveragedModel(model)
    nn.init.zeros_(model[0].weight)
    CheckpointSaver(model, torch.optim.SGD(model.parameters(), 0.1), model_ema=ema,
                    checkpoint_dir=str(tmp_path)).save_checkpoint(1)  # fmt: skip
    torch.save({"model": model.state_dict(), "model_ema": swa.state_dict()}, tmp_path / "swa.pth")
    for name in ("last.pth.tar", "swa.pth"):
        given = read_weights(str(tmp_path / name))
        assert given.averaged and given.state.keys() == model.state_dict().keys(), name
        assert given.state["0.weight"].abs().sum() > 0


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.marker}",)


def test_a_file_without_weights_is_refused_in_one_line_and_runs_no_code(tmp_path):
    files: dict[str, tuple[object, str]] = {
        "run.pth": (Malicious(tmp_path / "ran"), "does not load"),
        "list.pth": ([1, 2], "a list: expected a state_dict, alone or as one of"),
        "epoch.pth": ({"epoch": 3, "best": 1.0}, "keys 'epoch'; 'best': expected a state_dict"),
        "half.pth": ({"model": {"a": 3}}, "keys 'model': expected a state_dict"),
    }
    for name, (content, _) in files.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "broken.safetensors").write_bytes(b"\x03" * 100)
    (tmp_path / "broken.pth").write_bytes(b"\x03" * 100)
    words = {name: expected for name, (_, expected) in files.items()}
    words |= {"broken.safetensors": "expected weights in the form of safetensors", "broken.pth": "does not load"}
    for name, expected in {**words, "none.pth": "no such file: expected"}.items():
        with pytest.raises(UserError) as refusal:
            read_weights(str(tmp_path / name))
        assert name in str(refusal.value) and expected in str(refusal.value) and str(refusal.value).isprintable()
    assert not (tmp_path / "ran").exists()


# ---- runs ----


def equal(state: dict[str, Tensor], other: dict[str, Tensor], names: list[str]) -> bool:
    return all(torch.equal(state[name], other[name]) for name in names)


def test_a_run_begins_with_the_averages_of_another_under_a_head_of_its_own(recipe, three, trained, tmp_path):
    saved = checkpoint.load(trained / "last.pt")
    assert saved.ema is not None and not torch.equal(saved.ema["conv1.0.weight"], saved.model["conv1.0.weight"])
    run = begun(recipe, three, f"init={trained}", f"run_dir={tmp_path / 'run'}")
    state, seed = run.model.state_dict(), begun(recipe, three).model.state_dict()
    taken = [name for name in saved.ema if name not in HEAD]
    assert equal(state, saved.ema, taken) and equal(state, seed, [*HEAD])
    assert run.initial.tensors == Transfer(taken, [*HEAD], [*HEAD]) and run.initial.before is None
    assert run.initial.digest == saved.digest and run.initial.averaged


def test_the_same_classes_keep_the_head_too(recipe, folders, trained):
    run = begun(recipe, folders, f"init={trained / 'best.pt'}")
    saved = checkpoint.load(trained / "best.pt")
    assert run.initial.tensors.fresh == run.initial.tensors.dropped == []
    assert equal(run.model.state_dict(), saved.ema, list(saved.ema))


def test_keys_of_the_network_and_its_input_that_are_other_ones_than_the_weights_are_of_are_told(recipe, three, trained):
    keys = ["model.dropout=0.5", "data.mean=[0.0, 0.0, 0.0]", "train.batch_size=8"]
    initial = begun(recipe, three, f"init={trained}", *keys).initial
    assert initial is not None and set(initial.other) == {"model.dropout", "data.mean"}
    assert any(line.startswith("init: model.dropout=0.5 (the weights are of ") for line in initial.lines())


@pytest.mark.parametrize("ranks", [0, 2])
@pytest.mark.parametrize("name", BEGINS)
def test_batch_normalization_is_fine_tuned_into_what_begins_on_it_with_a_frozen_stem(
    recipe, three, trained, tmp_path, name, ranks
):
    options = [f"init={trained}", f"norm.name={name}", "norm.start=bn", "train.freeze=[conv1, layer1]"]
    options += ["train.freeze_statistics=[]", "optim.head_lr_factor=10"]
    final, told = train(recipe, three, tmp_path / "run", *options, ranks=ranks)
    saved, found = checkpoint.load(trained / "last.pt"), init_of(tmp_path / "run")
    assert found["path"] == str(trained / "last.pt") and found["sha256"] == saved.digest and found["averaged"]
    assert found["fresh"] == found["dropped"] == [*HEAD] and {*found["taken"], *HEAD} == saved.ema.keys()
    assert 0 < found["difference"] < 0.5
    line = f"init: {len(saved.ema) - 2} tensors taken from the averages of {trained / 'last.pt'}, fresh fc.weight; fc.b"
    assert line in told and f"init: outputs differ by at most {found['difference']:.3g} of the largest" in told
    assert told.count("init: ") == 2 and told.count("frozen: ") == 1
    kept = [key for key in saved.ema if key.startswith(("conv1.", "layer1.")) and "conv" in key and "weight" in key]
    kept = [key for key in kept if final.model[key].shape == saved.ema[key].shape and final.model[key].ndim == 4]
    assert len(kept) > 3 and equal(final.model, saved.ema, kept) and equal(final.ema, saved.ema, kept)
    assert not torch.equal(final.model["layer4.0.conv1.weight"], saved.ema["layer4.0.conv1.weight"])


@pytest.mark.parametrize("name", ["bn", "gn", "sn", "en"])
def test_a_linear_probe_learns_its_head_alone_and_fine_tuning_all_of_a_run_with_any_normalizer(
    recipe, folders, three, tmp_path, name
):
    body = train(recipe, folders, tmp_path / "body", f"norm.name={name}")[0].ema
    options = [f"norm.name={name}", f"init={tmp_path / 'body'}", "optim.head_lr_factor=10"]
    probed, told = train(recipe, three, tmp_path / "probed", *options, "train.freeze=['[!f]*']")
    kept = [key for key in body if key not in HEAD]
    assert f"frozen: parameters ({len([key for key in kept if is_learned(key)])} tensors)" in told
    assert equal(probed.model, body, kept) and equal(probed.ema, body, kept)  # running averages too
    tuned, _ = train(recipe, three, tmp_path / "tuned", *options)
    learned = [key for key in kept if is_learned(key) and not key.endswith("gate.2.bias")]
    assert not any(torch.equal(tuned.model[key], body[key]) for key in learned if tuned.model[key].ndim == 4)
    for found in (probed, tuned):
        assert found.model["fc.weight"].shape[0] == 3


def is_learned(key: str) -> bool:
    kinds = ("running_mean", "running_var", "num_batches_tracked", "trained_pixels", "_extra_state")
    return key.rpartition(".")[2] not in kinds


@pytest.fixture(scope="module")
def many(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A run with batch normalization whose accuracy is of 3,000 images, and its scores."""
    root = tmp_path_factory.mktemp("many")
    write_folders(root / "clothes", {"train": 150, "val": 750})
    options = ["train.epochs=6", "train.batch_size=50", "schedule.warmup_epochs=1"]
    succeed("train.py", recipe, f"data.root={root / 'clothes'}", f"run_dir={root / 'run'}", *options)
    return root / "run", last_json(succeed("eval.py", root / "run"))


@pytest.mark.slow(reason="trains a network whose accuracy is far from chance, and scores it on 3,000 images")
@pytest.mark.parametrize("name", BEGINS)
def test_what_batch_normalization_becomes_is_scored_before_training_by_the_command(many, name):
    run, before = many
    done = succeed("eval.py", run, f"norm.name={name}", "norm.start=bn")
    found = last_json(done)
    assert f"evaluates with norm.name={name} (trained with bn)" in done.stderr
    assert before["top1"] > 60 and found["top1"] >= before["top1"] - 0.5, (before, found)
    assert found["loss"] != before["loss"] and found["images"] == 3_000


def test_another_normalizer_than_the_weights_is_refused_unless_it_begins_on_batch_normalization(trained):
    for name in ("gn", "en"):
        message = refused(command("eval.py", trained, f"norm.name={name}"))
        assert f"norm.name={name}: expected bn, the normalizer of" in message and "norm.start=bn" in message


def test_a_run_that_resumes_does_not_read_its_first_weights_again(recipe, three, trained, tmp_path):
    origin = tmp_path / "origin"
    shutil.copytree(trained, origin)
    options = [f"init={origin}", "norm.name=en", "norm.start=bn", "train.epochs=2", "checkpoint.keep=9"]
    whole, _ = train(recipe, three, tmp_path / "whole", *options)
    shutil.rmtree(origin)
    (tmp_path / "again" / "checkpoints").mkdir(parents=True)
    for path in (tmp_path / "whole" / "checkpoints").glob("step_00001_00000000.pt*"):
        shutil.copy2(path, tmp_path / "again" / "checkpoints")
    again, told = train(recipe, three, tmp_path / "again", *options, "resume=auto")
    assert equal(whole.model, again.model, list(whole.model)) and equal(whole.ema, again.ema, list(whole.ema))
    assert "init: " not in told and init_of(tmp_path / "again") == {}
    assert [row["top1"] for row in rows(tmp_path / "whole")][1:] == [row["top1"] for row in rows(tmp_path / "again")]
    line = [recipe, f"data.root={three}", *options, "train.epochs=3", "--resume", tmp_path / "whole"]
    for init in (trained, "null"):
        assert f"expected what {tmp_path / 'whole'}" in refused(command("train.py", *line, f"init={init}"))
    assert "origin" in refused(command("train.py", recipe, f"data.root={three}", *options))


REFUSED = [
    (["model.name=timm/resnet14t"], "weights of model.name=timm/resnet10t: expected those of timm/resnet14t"),
    (["norm.name=en"], "weights of batch normalization for conv1.1, a ExemplarNorm2d: expected norm.name=bn, or"),
    (["norm.name=gn"], "weights of batch normalization for conv1.1, a GroupNorm2d: expected norm.name=bn, or"),
    (["norm.name=en", "norm.start=in"], "weights of batch normalization for conv1.1, a ExemplarNorm2d"),
    (["model.options.channels=[16,32,64,64]"], "layer4.0.bn1.weight has shape (128,): expected (64,)"),
]  # fmt: skip


def test_weights_of_another_normalizer_than_batch_normalization_are_said_to_be_expected_once(recipe, three, tmp_path):
    run = tmp_path / "run"
    succeed("train.py", recipe, f"data.root={three}", "norm.name=gn", "train.epochs=1", f"run_dir={run}")
    with pytest.raises(UserError, match=r"weights of norm.name=gn: expected those of bn$"):
        begun(recipe, three, f"init={run}")
    with pytest.raises(UserError, match=r"weights of norm.name=gn: expected those of en, or bn with norm.start=bn$"):
        begun(recipe, three, f"init={run}", "norm.name=en")


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=lambda value: str(value)[:50])
def test_weights_of_another_network_or_normalizer_are_refused_in_one_line(recipe, three, trained, options, words):
    with pytest.raises(UserError) as refusal:
        begun(recipe, three, f"init={trained}", *options)
    assert str(refusal.value).startswith(f"init={trained}: ") and words in str(refusal.value)


def test_options_that_are_not_given_are_those_that_the_weights_were_trained_with(recipe, three, tmp_path):
    train(recipe, three, tmp_path / "gn", "norm.name=gn", "norm.groups=2", "norm.eps=1e-3")
    for given, groups in (([], 2), (["norm.groups=1"], 1)):
        run = begun(recipe, three, f"init={tmp_path / 'gn'}", "norm.name=gn", *given)
        layers = [layer for layer in run.model.modules() if isinstance(layer, NORMALIZERS["gn"])]
        assert {(layer.groups, layer.eps) for layer in layers} == {(groups, 1e-3)}
        assert equal(
            run.model.state_dict(), checkpoint.load(tmp_path / "gn" / "last.pt").ema, [*run.initial.tensors.taken]
        )
    with pytest.raises(UserError, match=r"weights of norm\.name=gn: expected those of en, or bn with norm\.start=bn"):
        begun(recipe, three, f"init={tmp_path / 'gn'}", "norm.name=en", "norm.start=bn")


def test_what_the_maps_of_the_weights_decided_stays_and_that_of_batch_normalization_is_of_the_run(
    recipe, three, trained, tmp_path
):
    def pixels(run: TrainingRun) -> int:
        return int(run.model.state_dict()["layer4.0.bn2.trained_pixels"])

    options = ["norm.name=en", "norm.start=bn"]
    train(recipe, three, tmp_path / "en", *options, f"init={trained}")
    larger = "data.resolution=64"
    assert pixels(begun(recipe, three, *options, f"init={trained}", larger)) == 4
    assert pixels(begun(recipe, three, "norm.name=en", f"init={tmp_path / 'en'}", larger)) == 1


@pytest.mark.parametrize("norm", ["bn", *BEGINS])
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_file_of_torchvision_or_timm_begins_a_run(recipe, three, tmp_path, library, norm):
    torch.manual_seed(0)
    if library == "torchvision":
        model, network = torchvision.models.resnet18(), ["model={name: resnet18}"]
    else:
        model, network = create_model("resnet10t", num_classes=1000, channels=(16, 32, 64, 128), stem_width=8), []
    model(images(8, 3, 64, 64))  # stands for its training
    path = wrapped(library, model, tmp_path)
    start = [f"norm.name={norm}", *(["norm.start=bn"] if norm in BEGINS else [])]
    run = begun(recipe, three, f"init={path}", *network, *start)
    weights, state = model.state_dict(), run.model.state_dict()
    taken = [name for name in weights if name not in HEAD]
    assert run.initial.tensors == Transfer(taken, [*HEAD], [*HEAD]) and state["fc.weight"].shape[0] == 3
    same = [name for name in taken if state[name].shape == weights[name].shape and not name.endswith("bias")]
    assert len(same) > len(taken) / 2 and equal(state, weights, same)
    if norm in BEGINS:
        run.initial.compare(run.task, run.model, images(4, 3, 32, 32))
        assert 0 < run.initial.difference < 0.6 and run.model.training
    else:
        assert run.initial.before is None and equal(state, weights, taken)


def test_the_configuration_of_the_docs_fine_tunes(recipe, three, trained, tmp_path):
    page = (ROOT / "docs" / "warm_start.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    shutil.copy2(recipe, tmp_path / "flowers_resnet.yaml")
    (tmp_path / "fine.yaml").write_text(block)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "cifar").symlink_to(trained)
    final, told = train(tmp_path / "fine.yaml", three, tmp_path / "run", f"init={tmp_path / 'runs' / 'cifar'}")
    assert "outputs differ by at most" in told and "statistics of normalizers (1)" in told
    origin = checkpoint.load(trained / "last.pt").ema
    assert torch.equal(final.model["layer2.0.conv1.weight"], origin["layer2.0.conv1.weight"])


def test_a_file_of_another_network_is_refused_by_the_first_tensor(recipe, three, tmp_path):
    path = wrapped("plain", torchvision.models.resnet18(), tmp_path)
    with pytest.raises(UserError, match=r"^init=.*plain\.pth: .*expected"):
        begun(recipe, three, f"init={path}")
    buffer = io.BytesIO()
    torch.save(torchvision.models.resnet34().state_dict(), buffer)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match=r"layer1\.2\.conv1\.weight: no such parameter or buffer in this ResNet"):
        begun(recipe, three, f"init={path}", "model={name: resnet18}")
