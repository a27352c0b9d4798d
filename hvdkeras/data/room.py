"""Whether a store has room for what is to be written: asked before, and named where it was not enough."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator

from hvdkeras.data.store import local_path

_FULL = os.strerror(errno.ENOSPC)


@contextlib.contextmanager
def room(url: str, needed: int | None = None, name: str = "store") -> Iterator[None]:
    """Has an error name the store, and its free and needed bytes, where what the block writes has no room.

    Args:
        url: a local folder that exists, or a URL, whose room can't be known.
        needed: bytes that will be written; None where this is not known.
        name: the user's argument, for the error.

    Raises:
        OSError: there is not enough room, before the block where that is known, or the block met its end.
    """
    path = local_path(url)
    free = None if path is None else shutil.disk_usage(path).free
    wants = "" if needed is None else f"; the data needs {needed:,} bytes"
    if free is not None and needed is not None and needed > free:
        raise _full(f"{name} must have room for the data. Received: {url!r} with {free:,} bytes free{wants}")
    try:
        yield
    except Exception as error:
        # Spark repeats the error of a task as a text.
        if getattr(error, "errno", None) != errno.ENOSPC and _FULL not in str(error):
            raise
        had = "" if free is None else f", which had {free:,} bytes free before"
        raise _full(f"{name} must have room for what is written. Received: {url!r}{had}{wants}") from error


def _full(message: str) -> OSError:
    return OSError(errno.ENOSPC, f"{_FULL}: {message}")
