"""Labels in the place of a training set's own: rules that make them wrong, their file, and loaders that give them."""

from en.data.labels.relabelled import Relabelled, relabelled, relabelling
from en.data.labels.sidecar import Sidecar, read_sidecar, sidecar_path, write_sidecar

__all__ = ["Relabelled", "Sidecar", "read_sidecar", "relabelled", "relabelling", "sidecar_path", "write_sidecar"]
