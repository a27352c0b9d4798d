"""A folder in a store for the data of one training: leased to its driver, and removed once that has ended.

A driver that is killed removes nothing. So the folder holds a file that names its process, and that a thread
of it renews. The next training in the same store removes the folders whose process has certainly ended.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
import threading
import uuid

from pyarrow import fs

from hvdkeras.data import process
from hvdkeras.data.store import delete_folder, joined, normalized, open_filesystem

logger = logging.getLogger("hvdkeras")

PREFIX = "hvdkeras-training-"
OWNER = "owner.json"
RENEWAL_SECONDS = 600.0
JOIN_SECONDS = 30.0
# Whether a process of another machine or container has ended can't be asked: so long its lease lasts.
LEASE_SECONDS = 86_400.0
_NAME = re.compile(f"{PREFIX}[0-9a-f]{{12}}")

# What renews the lease of each folder that this process holds, and its end.
_held: dict[str, tuple[threading.Thread, threading.Event]] = {}


def lease_folder(store: str | os.PathLike | None) -> str:
    """Makes a new folder, and removes those in the same store that ended trainings have left.

    Args:
        store: a local folder or a URL. None: the temporary folder of this machine; the folder is then
            this user's alone.

    Returns:
        The folder's path or URL.

    Raises:
        ValueError: the store can't be written.
    """
    parent = normalized(tempfile.gettempdir() if store is None else store)
    url = joined(parent, f"{PREFIX}{uuid.uuid4().hex[:12]}")
    try:
        system, path = open_filesystem(url)
        if store is None:
            os.mkdir(path, 0o700)
        else:
            system.create_dir(path, recursive=True)
        _renew(url)
    except OSError as error:
        raise ValueError(
            f"store must be a folder or URL that can be written. Received: {store!r} ({error})"
        ) from error
    ended = threading.Event()
    keeper = threading.Thread(target=_keep, args=(url, ended), name="renew-lease", daemon=True)
    _held[url] = keeper, ended
    keeper.start()
    try:
        _clear_away(parent, url)
    except Exception as error:  # what others left must not cost this training
        logger.warning("could not remove what ended trainings have left in %s: %s", parent, error)
    return url


def release_folder(url: str) -> None:
    """Removes what `lease_folder` returned. A second call does nothing."""
    if url in _held:
        keeper, ended = _held.pop(url)
        ended.set()
        # A renewal that is under way would make the folder anew.
        keeper.join(JOIN_SECONDS)
        _remove(url)


def _remove(url: str) -> None:
    """Removes a folder, its owner's file last: what remains after a failure is found again."""
    try:
        system, path = open_filesystem(url)
        entries = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        folders = [entry.base_name for entry in entries if entry.type == fs.FileType.Directory]
        if all(delete_folder(joined(url, name)) for name in folders):
            delete_folder(url)
    except OSError as error:
        logger.warning("could not delete all of %s: %s", url, error)


def _keep(url: str, ended: threading.Event) -> None:
    while not ended.wait(RENEWAL_SECONDS):
        try:
            _renew(url)
        except Exception as error:
            logger.warning("could not renew the lease of %s: %s", url, error)


def _renew(url: str) -> None:
    system, path = open_filesystem(url)
    with system.open_output_stream(f"{path}/{OWNER}") as file:
        file.write(json.dumps({"written_by": "hvdkeras", **process.this_process()}).encode())


def _clear_away(parent: str, own: str) -> None:
    system, path = open_filesystem(parent)
    now = system.get_file_info(f"{open_filesystem(own)[1]}/{OWNER}").mtime_ns
    for entry in system.get_file_info(fs.FileSelector(path)):
        url = joined(parent, entry.base_name)
        if not _NAME.fullmatch(entry.base_name) or url in _held:
            continue
        # Another user's, one that has just been made, or that its owner removes now.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            file = f"{entry.path}/{OWNER}"
            with system.open_input_stream(file) as stream:
                owner = json.loads(stream.read())
            renewed = system.get_file_info(file).mtime_ns
            # Both by the store's clock.
            seconds = 0.0 if None in (now, renewed) else (now - renewed) / 1e9
            ended = process.has_ended(owner)
            if owner["written_by"] == "hvdkeras" and (seconds > LEASE_SECONDS if ended is None else ended):
                logger.warning("removing %s, which a training on %s has left", url, owner["host"])
                _remove(url)
