"""Files of weights that other programs wrote, told from this package's checkpoints."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from en.errors import UserError, shown

EXPECTED = "expected a checkpoint that train.py wrote, which holds its configuration; see docs/warm_start.md for others"
OWN = {"model", "config"}  # what checkpoints of every version hold, those without a format too
WRAPPERS = re.compile(r"((module|_orig_mod|model)\.)+")  # by DDP and averages, torch.compile, Lightning
NAMED = 8


def refuse_foreign(found: Mapping[Any, Any], path: Path) -> None:
    """Raises UserError for what another program wrote, saying what it is; not for earlier versions' checkpoints."""
    if is_own(found):
        return
    state: Mapping[str, Tensor] = next((value for value in (found, *found.values()) if is_state_dict(value)), {})
    if state is found:
        kind = f"a plain state_dict of {len(state)} tensors"
    else:
        kind = f"another program's checkpoint, of {', '.join(map(shown, list(found)[:NAMED])) or 'nothing'}"
    prefix = WRAPPERS.match(next(iter(state), ""))
    wrapped = f", its weights' names after the wrapper's {prefix[0]!r}" if prefix else ""
    raise UserError(f"{path}: {kind}{wrapped}: {EXPECTED}")


def is_own(found: object) -> bool:
    """Tells whether a version of this package wrote these values."""
    if not isinstance(found, Mapping):
        return False
    config = found.get("config")
    return "format" in found or (found.keys() >= OWN and isinstance(config, Mapping) and "norm" in config)


def is_state_dict(value: object) -> bool:
    """Tells whether these are tensors by name, and nothing else."""
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(name, str) and isinstance(each, Tensor) for name, each in value.items())


def object_in(error: Exception) -> str:
    """Names the class of an object that torch found among the values and refused to load; else returns nothing."""
    found = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    return f"it holds an object of {found[1]}, as files of other programs do" if found else ""
