"""A small ImageNet, in each layout that people hold the large one in: true names and ids, and images of ours."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from conftest import jpeg
from jpeg_files import FACTORS, sampled, segment
from PIL import Image

from en.data.preparation.oddities import EXIF, XMP

CLASSES = ["n01751748", "n02012849", "n02105855", "n03126707"]  # sea snake, crane, Shetland sheepdog, crane
NAMES = ["sea snake", "crane", "Shetland sheepdog, Shetland sheep dog, Shetland", "crane"]
DEVKITS = {3: "n01751748", 1: "n02012849", 4: "n02105855", 2: "n03126707"}  # ids that are not the sorted ids' order
ODD = {
    "PNG named JPEG": "n02105855/n02105855_2933.JPEG",
    "CMYK": "n01751748/ILSVRC2012_val_00000004.JPEG",
    "XMP that is not UTF-8": "n03126707/n03126707_1553.JPEG",
    "broken EXIF": "n02012849/n02012849_9.JPEG",
    "EXIF orientation, not applied": "n02012849/n02012849_80.JPEG",
    "grey": "n01751748/n01751748_1.JPEG",
    "4:1:1": "n01751748/n01751748_20.JPEG",
}
Images = dict[str, dict[str, bytes]]  # by split, then by name, in the order of class folders
TRAIN = [f"{wnid}/{wnid}_{number}.JPEG" for wnid in CLASSES for number in (1, 9, 20, 80, 1553, 2933)]
VAL = [f"{CLASSES[(3 * number) % 4]}/ILSVRC2012_val_{number:08}.JPEG" for number in range(1, 13)]


def tiff(tag: int, kind: int, count: int, value: int) -> bytes:
    """EXIF with one tag."""
    entry = tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + count.to_bytes(4, "little")
    return b"II*\0\x08\0\0\0\x01\0" + entry + value.to_bytes(4, "little") + bytes(4)


def with_segment(content: bytes, said: bytes) -> bytes:
    return content[:2] + segment(0xE1, said) + content[2:]


def image(name: str, number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (5, 6, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    odd = next((what for what, file in ODD.items() if file == name), "")
    match odd:
        case "PNG named JPEG":
            buffer = io.BytesIO()
            Image.fromarray(pixels).convert("RGBA").save(buffer, "PNG")
            return buffer.getvalue()
        case "CMYK" | "grey":
            return jpeg(pixels, "CMYK" if odd == "CMYK" else "L")
        case "XMP that is not UTF-8":
            return with_segment(jpeg(pixels), XMP + b"<x:xmpmeta \xff\xfe\xe9")
        case "broken EXIF":
            return with_segment(jpeg(pixels), EXIF + tiff(0x9286, 7, 2_555_904, 1000))
        case "EXIF orientation, not applied":
            return with_segment(jpeg(pixels), EXIF + tiff(0x0112, 3, 1, 6))
        case "4:1:1":
            return sampled(40, 48, FACTORS["4:1:1"], np.random.default_rng(number))
    return jpeg(pixels, quality=96, subsampling=0)


def images() -> Images:
    made = {name: image(name, number) for number, name in enumerate([*TRAIN, *VAL])}
    return {"train": {name: made[name] for name in sorted(TRAIN)}, "val": {name: made[name] for name in sorted(VAL)}}


def wnid_of(name: str) -> str:
    return name.partition("/")[0]


def base(name: str) -> str:
    return name.rpartition("/")[2]


def shuffled(names: list[str], seed: int = 0) -> list[str]:
    return [names[number] for number in np.random.default_rng(seed).permutation(len(names))]


def tar_of(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def put(root: Path, name: str, content: bytes) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)


def folders(root: Path, made: Images) -> Path:
    for split, contents in made.items():
        for name, content in contents.items():
            put(root / split, name, content)
    return root


def devkit(root: Path, made: Images) -> None:
    """The devkit's archive: ground truth in the order of the sorted names, and meta.mat with an internal node."""
    from scipy.io import savemat

    numbers = {wnid: number for number, wnid in DEVKITS.items()}
    truth = "".join(f"{numbers[wnid_of(name)]}\n" for name in sorted(made["val"], key=base))
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(number, wnid, NAMES[CLASSES.index(wnid)], "", 0) for number, wnid in sorted(DEVKITS.items())]
    rows.append((5, "n00001740", "entity", "", 4))
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, kinds)[:, None]})
    top = "ILSVRC2012_devkit_t12/data"
    plain = tar_of(
        {f"{top}/ILSVRC2012_validation_ground_truth.txt": truth.encode(), f"{top}/meta.mat": meta.getvalue()}
    )
    put(root, "ILSVRC2012_devkit_t12.tar.gz", gzip.compress(plain))


def ilsvrc2012(root: Path, made: Images) -> Path:
    """A tar of tars, and one whose members are not in their names' order."""
    inner = {}
    for wnid in shuffled(CLASSES):
        names = shuffled([name for name in made["train"] if wnid_of(name) == wnid])
        inner[f"{wnid}.tar"] = tar_of({base(name): made["train"][name] for name in names})
    put(root, "ILSVRC2012_img_train.tar", tar_of(inner))
    put(root, "ILSVRC2012_img_val.tar", tar_of({base(name): made["val"][name] for name in shuffled([*made["val"]])}))
    devkit(root, made)
    return root


def flat(root: Path, made: Images) -> Path:
    folders(root, {"train": made["train"]})
    for name, content in made["val"].items():
        put(root / "val", base(name), content)
    return root


def flat_with_synsets(root: Path, made: Images) -> Path:
    lines = [wnid_of(name) for name in sorted(made["val"], key=base)]
    put(flat(root, made), "imagenet_2012_validation_synset_labels.txt", "\n".join(lines).encode())
    return root


def kaggle(root: Path, made: Images) -> Path:
    flat(root / "ILSVRC" / "Data" / "CLS-LOC", made)
    rows = [
        f"{base(name)[:-5]},{wnid_of(name)} 85 1 499 272 {wnid_of(name)} 1 2 3 4" for name in shuffled([*made["val"]])
    ]
    put(root, "LOC_val_solution.csv", "\n".join(["ImageId,PredictionString", *rows, ""]).encode())
    return root


def parquet(root: Path, made: Images, group: int = 5, order: tuple[int, ...] = (0, 1, 2, 3)) -> Path:
    """Two shards for training, rows in no order, the WordNet id after the files' names."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    numbers = {CLASSES[place]: number for number, place in enumerate(order)}
    features = {"label": {"names": [NAMES[place] for place in order], "_type": "ClassLabel"}}
    for split, shards in (("train", 2), ("validation", 1)):
        contents = made["train" if split == "train" else "val"]
        for shard in range(shards):
            names = shuffled([*contents])[shard::shards]
            paths = [f"{base(name)[:-5]}_{wnid_of(name)}.JPEG" for name in names]
            rows = [{"bytes": contents[name], "path": path} for name, path in zip(names, paths, strict=True)]
            table = pa.table({"image": rows, "label": pa.array([numbers[wnid_of(name)] for name in names], pa.int64())})
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
            (root / "data").mkdir(parents=True, exist_ok=True)
            write_table(table, root / "data" / f"{split}-{shard:05}-of-{shards:05}.parquet", row_group_size=group)
    return root


def webdataset(root: Path, made: Images) -> Path:
    """Shards of .jpg, .cls and .json, which keeps the file's name."""
    for split, shards in (("train", 3), ("validation", 2)):
        contents = made["train" if split == "train" else "val"]
        for shard in range(shards):
            members: dict[str, bytes] = {}
            for number, name in enumerate(shuffled([*contents])[shard::shards]):
                key = f"{shard:02}{number:05}"
                said = {"filename": f"{base(name)[:-5]}_{wnid_of(name)}.JPEG"}
                members |= {f"{key}.cls": str(CLASSES.index(wnid_of(name))).encode(), f"{key}.jpg": contents[name]}
                members[f"{key}.json"] = json.dumps(said).encode()
            put(root, f"imagenet1k-{split}-{shard:02}.tar", tar_of(members))
    return root


LAYOUTS: dict[str, Callable[[Path, Images], Path]] = {
    "folders": folders,
    "ILSVRC2012's tars": ilsvrc2012,
    "Kaggle's tree": kaggle,
    "a flat val": flat_with_synsets,
    "parquet": parquet,
    "webdataset": webdataset,
}
