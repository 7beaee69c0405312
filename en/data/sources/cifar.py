"""CIFAR-10 and CIFAR-100 from their archives, packed or unpacked: Python's pickles, or the binary form.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import io
import pickle
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from en.data.sources.source import Sample, Source
from en.data.targets import Pixels
from en.errors import UserError

SIDE, PLANES = 32, 3
BYTES = PLANES * SIDE * SIDE


@dataclass(frozen=True)
class Version:
    """One of the four archives.

    Attributes:
        name: of the set.
        folder: which the archive holds; the archive is called as `archive` says, or anyhow.
        files: of each split.
        names: the file with the classes' names, and their key in a pickle.
        labels: the key of the labels in a pickle; in the binary form, bytes before the image, of which the last counts.
    """

    name: str
    archive: str
    folder: str
    files: dict[str, list[str]]
    names: tuple[str, str]
    labels: str | int


VERSIONS = (
    Version(
        "CIFAR-10", "cifar-10-python.tar.gz", "cifar-10-batches-py",
        {"train": [f"data_batch_{number}" for number in range(1, 6)], "val": ["test_batch"]},
        ("batches.meta", "label_names"), "labels",
    ),
    Version(
        "CIFAR-10", "cifar-10-binary.tar.gz", "cifar-10-batches-bin",
        {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "val": ["test_batch.bin"]},
        ("batches.meta.txt", ""), 1,
    ),
    Version(
        "CIFAR-100", "cifar-100-python.tar.gz", "cifar-100-python",
        {"train": ["train"], "val": ["test"]}, ("meta", "fine_label_names"), "fine_labels",
    ),
    Version(
        "CIFAR-100", "cifar-100-binary.tar.gz", "cifar-100-binary",
        {"train": ["train.bin"], "val": ["test.bin"]}, ("fine_label_names.txt", ""), 2,
    ),
)  # fmt: skip


class ArraysOnly(pickle.Unpickler):
    """Unpickles numbers, texts, lists, dicts and NumPy's arrays; all else a pickle could run is refused."""

    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
        }
        if (module, name) in allowed:
            return allowed[module, name]
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return reconstruct
        raise pickle.UnpicklingError(f"{module}.{name}: expected arrays, lists and texts alone")


def reconstruct(kind: type[Pixels], shape: tuple[int, ...], code: bytes) -> Pixels:
    """Makes the array that its pickled state is then put into, as NumPy does."""
    made: Pixels = np.ndarray.__new__(kind, shape, np.uint8)
    return made


def place_of(path: Path) -> tuple[Version, Path] | None:
    """Finds which version a path is or holds: an archive, its folder, or a folder with one of these."""
    for version in VERSIONS:
        for place in (path, path / version.folder, path / version.archive):
            is_archive = place.name == version.archive and place.is_file()
            if is_archive or all((place / name).is_file() for name in (version.names[0], version.files["val"][0])):
                return version, place
    return None


def is_cifar(path: Path) -> bool:
    return place_of(path) is not None


def read_cifar(path: Path) -> Source:
    """Reads CIFAR's images, 32 x 32 pixels, into memory (184 MB), in the order of their files. Raises: UserError."""
    found = place_of(path)
    assert found is not None
    version, place = found
    wanted = [version.names[0], *(name for names in version.files.values() for name in names)]
    contents = archived(place, version, wanted) if place.is_file() else {name: read(place / name) for name in wanted}
    classes = names_in(place, version, contents[version.names[0]])
    splits = {}
    for split, files in version.files.items():
        splits[split] = [
            Sample(f"{name.removesuffix('.bin')}[{number}]", image, label)
            for name in files
            for number, (image, label) in enumerate(zip(*batch(place, version, name, contents.pop(name)), strict=True))
        ]
        if bad := next((each for each in splits[split] if not 0 <= int(str(each.target)) < len(classes)), None):
            raise UserError(f"{place}: {bad.name}: class {bad.target}: expected 0 to {len(classes) - 1}")
    form = f"{version.name}, {'its archive' if place.is_file() else 'unpacked'}"
    return Source(version.name, classes, splits, form=form)


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: expected a file of CIFAR's") from error


def archived(archive: Path, version: Version, names: list[str]) -> dict[str, bytes]:
    """Reads files of an archive in one pass, since a compressed one cannot be read elsewhere."""
    contents = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                folder, _, name = member.name.removeprefix("./").partition("/")
                if folder == version.folder and name in names and (file := tar.extractfile(member)):
                    contents[name] = file.read()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"{archive}: {error}: expected a whole archive") from error
    if missing := [name for name in names if name not in contents]:
        raise UserError(f"{archive}: expected {version.folder}/{missing[0]} in it")
    return contents


def names_in(place: Path, version: Version, content: bytes) -> list[str]:
    file, key = version.names
    if isinstance(version.labels, int):
        return [line.strip() for line in content.decode(errors="replace").splitlines() if line.strip()]
    return [str(name, "utf-8") for name in unpickled(place, file, content, key)]


def batch(place: Path, version: Version, name: str, content: bytes) -> tuple[Pixels, list[int]]:
    """The images of a file, (N, 32, 32, 3), and their labels."""
    if isinstance(version.labels, int):
        width = version.labels + BYTES
        if not content or len(content) % width:
            raise UserError(f"{place}: {name}: {len(content)} bytes: expected records of {width}")
        table = np.frombuffer(content, np.uint8).reshape(-1, width)
        return as_images(table[:, version.labels :]), table[:, version.labels - 1].tolist()
    data, labels = (unpickled(place, name, content, key) for key in ("data", version.labels))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (len(labels), BYTES):
        raise UserError(f"{place}: {name}: expected an array of {len(labels)} x {BYTES} bytes")
    return as_images(data), [int(label) for label in labels]


def as_images(rows: Pixels) -> Pixels:
    """Puts the colours' planes together: (N, 3,072) to (N, 32, 32, 3)."""
    return np.ascontiguousarray(rows.reshape(-1, PLANES, SIDE, SIDE).transpose(0, 2, 3, 1))


def unpickled(place: Path, name: str, content: bytes, key: str) -> Any:
    try:
        return ArraysOnly(io.BytesIO(content), encoding="bytes").load()[key.encode()]
    except Exception as error:  # of many kinds, for what is no pickle
        raise UserError(f"{place}: {name}: expected a pickle of CIFAR's with {key!r}: {error}") from error
