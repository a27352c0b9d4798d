"""Launches that are broken on purpose: each test has a bound, and nothing may be left behind."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hvdkeras.launch import environment, remains

from ranks import orphans

BOX = Path(__file__).with_name("box.py")


def files() -> set[str]:
    """What launches have left in temporary folders and in shared memory, without those that still run."""
    found = Path(tempfile.gettempdir()).glob(f"{remains.PREFIX}*")
    found = [path for path in found if not remains.is_locked(path)]
    shared = [name for name in orphans() if not remains.is_locked(remains.SHARED_MEMORY / name)]
    return {*map(str, found), *shared}


@pytest.fixture
def nothing_left(no_process_left: None) -> Iterator[None]:
    """Neither a process nor a file is left of the test's launches."""
    before = files()
    yield
    # Tests of other people on this machine may run beside these ones: only what is new and stays counts.
    left = files() - before
    assert not [name for name in left if remains.PREFIX in name]


@pytest.fixture
def boxed(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`boxed(script, kill="driver", signal=9)` runs a script where it is alone, and breaks it.

    The script has its own process, mount and network namespaces, an empty /dev/shm and an empty /tmp. When it
    has made the file `$READY`, the process of that name gets the signal. The result has what `box.py` found.
    """
    if os.getuid() != 0:
        pytest.skip("NOT TESTED WHAT IS LEFT: namespaces need root")
    unshare = ["unshare", "-n", "-m", "-p", "-f", "--mount-proc", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("NOT TESTED WHAT IS LEFT: this machine allows root no namespaces (a container?)")

    def run(script: str, kill: str = "", number: int = 0, timeout: float = 100) -> dict[str, Any]:
        (tmp_path / "script.py").write_text(textwrap.dedent(script))
        command = [*unshare, sys.executable, str(BOX), str(tmp_path), kill, str(number)]
        with open(tmp_path / "output", "wb") as output:
            ended = subprocess.run(
                command,
                env={**os.environ, **environment.variables()},
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
            )
        printed = (tmp_path / "output").read_text(errors="replace")
        assert ended.returncode == 0, printed
        return {**json.loads((tmp_path / "found").read_text()), "output": printed}

    return run
