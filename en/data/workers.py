"""Worker processes of torch's DataLoader that die."""

import multiprocessing
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from en.errors import RunError


@contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Turns torch's error about a dead DataLoader worker, which comes anywhere in the main thread, into a RunError."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RunError(f"the data loader failed: {str(error).splitlines()[0]}") from error
    finally:
        if sys.exc_info()[0] is not None:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise once more
            for child in multiprocessing.active_children():
                child.kill()  # one that is stopped would keep this process from ending
