"""TensorBoard's events: the files of a run's starts, and what may stand in them."""

import io
import math
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

TEXT = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
NAME = re.compile(r"events\.out\.tfevents\.([0-9]+)\..*")  # of the files of all starts, whatever wrote them
BINS = 20  # of a histogram
Option = bool | int | float | str


class EventFile:
    """Writes what one start of a run tells TensorBoard, into a file of its own.

    TensorBoard reads a folder's files in the order of their names, which begin with a time in seconds, and drops with
    each what those before it hold of its first place on the axis and of later ones. The time is therefore always above
    those of the starts before: of a clock that is behind theirs, or of a second start within the same second, all that
    TensorBoard shows would be dropped.

    Args:
        folder: of the run, made where it is missing.
        first: the first place on the folder's axis, epochs or steps counted from 1, that this start comes to.
    Raises: OSError.
    """

    def __init__(self, folder: Path, first: int) -> None:
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{next_time(folder)}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=first, session_log=SessionLog(status=SessionLog.START)))
        self.sync()

    def add(self, place: int, values: Sequence[Summary.Value]) -> None:
        """Appends values at a place on the axis: all of them, or after a kill none. Raises OSError."""
        self._write(Event(step=place, summary=Summary(value=values)))

    def sync(self) -> None:
        """Has what was appended survive a power cut. Raises OSError."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._file.flush()


def next_time(folder: Path) -> str:
    """Finds a time for a name that comes after those of a folder's event files: now, or else a second after theirs."""
    latest = max((found[1] for path in folder.iterdir() if (found := NAME.fullmatch(path.name))), default="")
    now = f"{int(time.time()):010d}"
    return now if now > latest else f"{int(latest) + 1:0{len(latest)}d}"


def scalar(tag: str, value: float) -> Summary.Value:
    """Makes a point of a curve."""
    return Summary.Value(tag=tag, simple_value=value)


def text(tag: str, markdown: str) -> Summary.Value:
    """Makes a card of a text in Markdown."""
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    encoded = TensorProto(
        dtype="DT_STRING", string_val=[markdown.encode(errors="backslashreplace")], tensor_shape=shape
    )
    return Summary.Value(tag=tag, metadata=TEXT, tensor=encoded)


def image(tag: str, content: bytes) -> Summary.Value:
    """Makes a card of a JPEG or PNG file."""
    width, height = Image.open(io.BytesIO(content)).size
    return Summary.Value(
        tag=tag, image=Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
    )


def histogram(tag: str, values: Sequence[float]) -> Summary.Value:
    """Counts values in BINS bins from 0 to 1, wider where some lie beyond."""
    counts, edges = np.histogram(values, BINS, (min(0.0, *values), max(1.0, *values)))
    found = HistogramProto(
        min=min(values),
        max=max(values),
        num=len(values),
        sum=math.fsum(values),
        sum_squares=math.fsum(value * value for value in values),
        bucket_limit=edges[1:].tolist(),
        bucket=counts.tolist(),
    )
    return Summary.Value(tag=tag, histo=found)


def options(chosen: Mapping[str, Option], group: str) -> Summary.Value:
    """Tells TensorBoard's HPARAMS what a run was configured with, by dotted key.

    Args:
        group: of runs that it takes the means of.
    """
    start = plugin_data_pb2.SessionStartInfo(group_name=group)
    for key, value in chosen.items():
        if isinstance(value, bool):
            start.hparams[key].bool_value = value
        elif isinstance(value, str):
            start.hparams[key].string_value = value
        else:
            start.hparams[key].number_value = value
    return of_hparams(metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=start))


def experiment(keys: Sequence[str], metrics: Sequence[str]) -> Summary.Value:
    """Tells TensorBoard's HPARAMS what to compare the runs in the folders below by.

    Args:
        keys: dotted keys of their configurations.
        metrics: tags of scalars.
    """
    found = api_pb2.Experiment(
        hparam_infos=[api_pb2.HParamInfo(name=key) for key in keys],
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics],
    )
    return of_hparams(metadata.EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=found))


def of_hparams(tag: str, found: plugin_data_pb2.HParamsPluginData) -> Summary.Value:
    return Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(found), tensor=metadata.NULL_TENSOR)


def as_file(values: Sequence[Summary.Value]) -> bytes:
    """Makes the content of an event file that never grows: values at 0."""
    file = io.BytesIO()
    records = RecordWriter(file)
    for event in (Event(file_version="brain.Event:2"), Event(summary=Summary(value=values))):
        records.write(event.SerializeToString())
    return file.getvalue()
