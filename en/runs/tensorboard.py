"""A run's numbers as TensorBoard's events."""

import io
import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.summary.writer.record_writer import RecordWriter

TEXT = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
NAME = re.compile(r"events\.out\.tfevents\.([0-9]+)\..*")  # of the files of all starts, whatever wrote them


class EventFile:
    """Writes what one start of a run tells TensorBoard, into a file of its own.

    TensorBoard reads a folder's files in the order of their names, which begin with a time in seconds, and drops with
    each what those before it hold of its first epoch and of later ones. The time is therefore always above those of the
    starts before: of a clock that is behind theirs, or of a second start within the same second, all that TensorBoard
    shows would be dropped.

    Args:
        folder: of the run.
        first_epoch: that this start finishes, counted from 1.
    Raises: OSError.
    """

    def __init__(self, folder: Path, first_epoch: int) -> None:
        name = f"events.out.tfevents.{next_time(folder)}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=first_epoch, session_log=SessionLog(status=SessionLog.START)))

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        """Appends the values of an epoch, by their tags, durably. Raises OSError."""
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(Event(step=epoch, summary=Summary(value=scalars)))

    def show(self, epoch: int, texts: Mapping[str, str], pictures: Mapping[str, bytes]) -> None:
        """Appends Markdown and JPEG files of an epoch, by their tags, durably. Raises OSError."""
        values = [Summary.Value(tag=tag, metadata=TEXT, tensor=in_tensor(text)) for tag, text in texts.items()]
        for tag, content in pictures.items():
            width, height = Image.open(io.BytesIO(content)).size
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
            values.append(Summary.Value(tag=tag, image=image))
        self._write(Event(step=epoch, summary=Summary(value=values)))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._file.flush()
        os.fsync(self._file.fileno())


def in_tensor(text: str) -> TensorProto:
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    return TensorProto(dtype="DT_STRING", string_val=[text.encode(errors="backslashreplace")], tensor_shape=shape)


def next_time(folder: Path) -> str:
    """Finds a time for a name that comes after those of a folder's event files: now, or else a second after theirs."""
    latest = max((found[1] for path in folder.iterdir() if (found := NAME.fullmatch(path.name))), default="")
    now = f"{int(time.time()):010d}"
    return now if now > latest else f"{int(latest) + 1:0{len(latest)}d}"
