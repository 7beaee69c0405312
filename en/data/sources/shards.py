"""Files of sets that come in shards: which split each is of, and whether all are there."""

import re
from pathlib import Path

from en.data.sources.source import SPLITS
from en.errors import UserError, listed

SPLIT = re.compile(r"(?:^|[^a-z])(train|validation|valid|val)(?:[^a-z]|$)")
OF = re.compile(r"-([0-9]{5})-of-([0-9]{5})")
PARTIAL = "partial-"  # what Hugging Face converts of a large set


def shards(root: Path, suffix: str) -> dict[str, list[Path]]:
    """Finds the shards of each split in a folder and in its folders, by number; those of a test set are left out."""
    found: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for path in sorted([*root.glob(f"*{suffix}"), *root.glob(f"*/*{suffix}")], key=numeric):
        inside = path.relative_to(root)
        if any(part.startswith(".") for part in inside.parts):
            continue
        if match := SPLIT.search(str(inside).lower()):
            found["train" if match[1] == "train" else "val"].append(path)
    return found


def numeric(path: Path) -> list[tuple[int, str]]:
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split("([0-9]+)", str(path))]


def all_shards(root: Path, suffix: str) -> dict[str, list[Path]]:
    """Finds the shards of both splits. Raises: UserError for a split without any, and for those that are not there."""
    found = shards(root, suffix)
    for split, paths in found.items():
        if not paths:
            raise UserError(f"{root}: expected files *{suffix} for {split} too, with that in their names, found none")
        if part := next((path for path in paths if PARTIAL in str(path.relative_to(root))), None):
            raise UserError(f"{part.parent}: a part of the set, as its name says: expected all of it")
        numbers = [(int(match[1]), int(match[2])) for path in paths if (match := OF.search(path.name))]
        count = max((of for _, of in numbers), default=0)
        missing = sorted(set(range(count)) - {number for number, _ in numbers})
        if missing or len(numbers) > len(set(numbers)):
            several = (
                f"shards missing: {listed([f'{number:05}' for number in missing], 3)}" if missing else "some twice"
            )
            raise UserError(f"{root}: {split}: {len(numbers)} of {count} shards, {several}")
    return found
