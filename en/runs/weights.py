"""Weights for a run to begin with: those of another run, or a state_dict that another program left on disk."""

import hashlib
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from en.errors import UserError, listed, shown
from en.runs import checkpoint
from en.runs.completeness import averages
from en.runs.contents import Checkpoint, Weights
from en.runs.foreign import WRAPPERS, is_own, is_state_dict

AVERAGED = ("state_dict_ema", "model_ema")  # names of averaged weights in checkpoints of timm and torchvision
HOLDERS = ("state_dict", "model", "model_state_dict")  # of the weights, there and elsewhere
NO_WEIGHTS = ("n_averaged",)  # beside them in what torch.optim.swa_utils.AveragedModel holds


@dataclass(frozen=True)
class GivenWeights:
    """Weights from a file, by their names in the network.

    Attributes:
        path, digest: the file, and its SHA-256.
        state: the averaged weights where the file has them, because those are what was evaluated.
        averaged: whether they are.
        saved: the whole checkpoint, of one of this package's.
    """

    path: Path
    digest: str
    state: Weights
    averaged: bool
    saved: Checkpoint | None = None


def read_weights(where: str) -> GivenWeights:
    """Reads the weights of a run folder's last.pt, of a checkpoint, or of another program's file.

    The latter is a state_dict as torch saves it or, by the end of its name, in .safetensors; also within a checkpoint,
    and with the names that wrappers give.

    Raises: UserError for a file that is missing, damaged, or has no weights.
    """
    path = checkpoint.locate(where)
    if checkpoint.sum_path(path).is_file():  # of this package, and told by it whether the file is whole
        return of_checkpoint(checkpoint.load(path), path)
    content = checkpoint.content_of(path)
    found = of_safetensors(content, path) if path.suffix == ".safetensors" else of_torch(content, path)
    if is_own(found):
        return of_checkpoint(checkpoint.load(path), path)
    state, averaged = state_in(found, path)
    return GivenWeights(path, hashlib.sha256(content).hexdigest(), unwrapped(state), averaged)


def of_checkpoint(saved: Checkpoint, path: Path) -> GivenWeights:
    """Takes what is evaluated of a run: see open_trained."""
    averaged = averages(saved, path)
    return GivenWeights(path, saved.digest, averaged or saved.model, averaged is not None, saved)


def of_torch(content: bytes, path: Path) -> object:
    """Reads what torch saved, without running code. Both libraries keep their command line's arguments beside it."""
    with torch.serialization.safe_globals([Namespace]):
        found: object = checkpoint.values_in(content, path)
    return found


def of_safetensors(content: bytes, path: Path) -> Weights:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        state: Weights = load(content)
    except SafetensorError as error:
        raise UserError(f"{path}: expected weights in the form of safetensors: {error}") from error
    return state


def state_in(found: object, path: Path) -> tuple[Mapping[str, Tensor], bool]:
    """Returns the state_dict in a file's values, and whether it is one of averaged weights."""
    held = found if isinstance(found, Mapping) else {}
    for name in (*AVERAGED, *HOLDERS):
        if is_state_dict(held.get(name)):
            return held[name], name in AVERAGED
    if not is_state_dict(found):
        holds = f"keys {listed(list(map(shown, held)))}" if held else f"a {type(found).__name__}"
        raise UserError(f"{path}: {holds}: expected a state_dict, alone or as one of {', '.join(AVERAGED + HOLDERS)}")
    return held, False


def unwrapped(state: Mapping[str, Tensor]) -> Weights:
    """Returns a state_dict under the network's own names, without what DDP, torch.compile or Lightning put before."""
    weights = {name: value for name, value in state.items() if name not in NO_WEIGHTS}
    prefix = WRAPPERS.match(next(iter(weights), ""))
    if prefix and all(name.startswith(prefix[0]) for name in weights):
        return {name.removeprefix(prefix[0]): value for name, value in weights.items()}
    return weights
