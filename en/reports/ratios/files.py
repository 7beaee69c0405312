"""The files of a run's ratios: tables, figures, and a part of a page with both."""

import base64
import csv
import json
import os
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from en import durable
from en.errors import RunError, UserError, in_one_line
from en.reports.figures import Picture
from en.reports.ratios.figures import (
    by_mean,
    class_picture,
    epoch_picture,
    layer_picture,
    none_leans,
    sample_pictures,
)
from en.reports.ratios.tables import (
    ClassMean,
    Columns,
    EpochMean,
    Extreme,
    Spread,
    class_means,
    epoch_means,
    rows_table,
    samples_table,
    spreads,
)
from en.reports.tables import NOTHING
from en.reports.templates import template_environment
from en.runs.ratios import EpochRatios, Ratios

PAGE = "ratios.html"
FACTS = "facts.json"  # what all files are of
PICTURES = ("layers", "classes", "epochs", "samples_bottom", "samples_middle", "samples_top")
ROWS_AT_ONCE = 2**14  # of a table, so that writing needs no memory for all samples
NAMED = 3  # classes at either end in the page's table


class Leaning(NamedTuple):
    """Which classes are shown to lean on a normalizer more and less than all images, in words."""

    layer: str
    normalizer: str
    mean: float
    most: str
    least: str


def make_folder(out: Path) -> None:
    """Makes the folder for the files. Raises UserError for one that cannot be made or written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--out {out}: {reason}: expected a folder that can be written") from error
    if not os.access(out, os.W_OK):
        raise UserError(f"--out {out}: expected a folder that can be written")


def write_ratios(
    out: Path,
    ratios: Ratios,
    ends_of: Sequence[Extreme],
    images: Mapping[int, NDArray[np.uint8]],
    epochs: Sequence[EpochRatios],
    facts: Mapping[str, str],
) -> None:
    """Writes the tables (CSV, and with pyarrow Parquet), figures (SVG, PDF, their words as text) and the page's part.

    FACTS is removed first and comes last, so that where it is there all files are of what it says.

    Args:
        out: a folder that is there.
        ends_of: of `extremes`.
        images: (R, R, 3) RGB, of their samples.
        epochs: of the run; may be empty.
        facts: what the ratios are of, by its name.
    Raises: RunError for what the file system refuses. Every other file is whole or as it was.
    """
    over_samples, by_class, over_epochs = spreads(ratios), class_means(ratios), epoch_means(epochs)
    tables = {
        "samples": samples_table(ratios),
        "classes": rows_table(ClassMean, by_class),
        "epochs": rows_table(EpochMean, over_epochs),
        "extremes": rows_table(Extreme, ends_of),
        "layers": rows_table(Spread, over_samples),
    }
    pictures = [layer_picture(over_samples)]
    pictures += [class_picture(by_class)] if by_class else []
    pictures += [epoch_picture(over_epochs, ratios.places)] if over_epochs else []
    pictures += sample_pictures(ends_of, images)
    try:
        (out / FACTS).unlink(missing_ok=True)
        write_pictures(out, pictures)
        durable.replace(out / PAGE, page(over_samples, by_class, pictures, facts))
        for name, table in tables.items():
            write_csv(out / f"{name}.csv", table)
            write_parquet(out / f"{name}.parquet", table, facts)
        durable.replace(out / FACTS, json.dumps(dict(facts), indent=1).encode())
    except OSError as error:
        raise RunError(f"{error.filename or out}: {error.strerror or error}: not written") from error


def write_csv(path: Path, table: Columns) -> None:
    """Writes a table as text with a header, some rows at a time; what is None is empty. Raises OSError."""
    rows = max(map(len, table.values()))
    with durable.replacing(path) as file:
        text = TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(table)
        for start in range(0, rows, ROWS_AT_ONCE):
            parts = (column[start : start + ROWS_AT_ONCE] for column in table.values())
            writer.writerows(zip(*parts, strict=True))
        text.detach()  # flushes, and leaves the file open


def write_parquet(path: Path, table: Columns, facts: Mapping[str, str]) -> None:
    """Writes a table as Parquet with the facts in its metadata; without pyarrow, removes an earlier one.

    Raises: OSError.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        path.unlink(missing_ok=True)
        return
    made = pyarrow.table({name: pyarrow.array(column) for name, column in table.items()})
    with durable.replacing(path) as file:
        made = made.replace_schema_metadata(dict(facts))
        parquet.write_table(made, file, row_group_size=ROWS_AT_ONCE, use_dictionary=False, compression="zstd")


def read_facts(folder: Path) -> dict[str, str]:
    """Reads what the ratios in a folder are of, by its name; empty where not all of them were written."""
    try:
        found = json.loads((folder / FACTS).read_bytes())
    except (OSError, ValueError):
        return {}
    of_words = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    return found if of_words else {}


def write_pictures(out: Path, pictures: Sequence[Picture]) -> None:
    """Writes the figures, and removes those of earlier ratios that these do not have."""
    contents: dict[str, bytes] = {}
    for each in pictures:
        words = each.alt.encode("utf-8", "backslashreplace")
        contents |= {f"{each.name}.svg": each.svg, f"{each.name}.pdf": each.pdf, f"{each.name}.txt": words}
    for name, content in contents.items():
        durable.replace(out / name, content)
    for name in (f"{name}.{kind}" for name in PICTURES for kind in ("svg", "pdf", "txt")):
        if name not in contents:
            (out / name).unlink(missing_ok=True)


def page(
    over_samples: Sequence[Spread], by_class: Sequence[ClassMean], pictures: Sequence[Picture], facts: Mapping[str, str]
) -> bytes:
    """A section of HTML in ASCII that needs nothing beside it. Whatever names contain is shown letter for letter."""
    environment = template_environment()
    kinds = list(dict.fromkeys(row.normalizer for row in over_samples))
    layers: dict[str, dict[str, Spread]] = {}
    for row in over_samples:
        layers.setdefault(row.layer, {})[row.normalizer] = row
    text = environment.get_template("ratios/page.html.j2").render(
        facts=facts, kinds=kinds, layers=layers, leanings=leanings(by_class), pictures=[*map(embedded, pictures)]
    )
    return text.encode("ascii", "xmlcharrefreplace")


def leanings(by_class: Sequence[ClassMean]) -> list[Leaning]:
    """A row for each of the layers and normalizers."""
    panels: dict[tuple[str, str, str], list[ClassMean]] = {}
    for row in by_class:
        panels.setdefault((row.place, row.layer, row.normalizer), []).append(row)
    found = []
    for (place, layer, kind), own in panels.items():
        ordered, classes = by_mean(own), len(own)
        more = [of_class(row, classes) for row in ordered if row.leans(classes) and row.difference > 0]
        less = [of_class(row, classes) for row in ordered[::-1] if row.leans(classes) and row.difference < 0]
        most, least = (", ".join(names[:NAMED]) or NOTHING for names in (more, less))
        most = most if more or less else none_leans(own)
        found.append(Leaning(f"{place}, {layer}", kind, own[0].overall, most, least))
    return found


def of_class(row: ClassMean, classes: int) -> str:
    """Says how far a class is from all images, with an interval corrected for so many classes."""
    return f"{in_one_line(row.name)} {row.difference:+.2g} \u00b1 {row.half(classes):.1g} (n {row.images:,})"


def embedded(picture: Picture) -> dict[str, str]:
    """A figure as part of a page."""
    address = f"data:image/svg+xml;base64,{base64.b64encode(picture.svg).decode()}"
    return {"title": picture.title, "alt": picture.alt, "address": address}
