"""The folder of a training: removed by its driver, also by one that a signal ends, or by a later training."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid

import numpy as np
import pytest

from hvdkeras.data import lease
from hvdkeras.data.store import open_filesystem
from hvdkeras.launch import termination

HOLD = """
import time
import numpy as np
from hvdkeras.data.lease import lease_folder
from hvdkeras.data.columns import Column
from hvdkeras.data.writing import write_arrays

write_arrays({"x": np.zeros(3)}, [Column("x", (), "float32")], lease_folder(STORE))
print("ready", flush=True)
time.sleep(100)
"""

LAY_OUT = """
import time
import keras
import numpy as np
import hvdkeras
from hvdkeras.driver.layout import laid_out

model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
trainer = hvdkeras.EASGD(model, loss="mse", store=STORE)
rows = {"features": np.zeros(8), "label": np.zeros(8)}
with laid_out(trainer, rows), laid_out(trainer, rows):
    print("ready", flush=True)
    time.sleep(100)
"""


def process(code, store):
    started = subprocess.Popen(
        [sys.executable, "-c", f"STORE = {str(store)!r}\n{code}"], stdout=subprocess.PIPE, text=True
    )
    assert started.stdout.readline() == "ready\n"
    return started


def ended(started, number):
    started.send_signal(number)
    started.communicate(timeout=60)
    return started.returncode


def names(folder):
    return {path.name for path in folder.iterdir()}


def forget(folder):
    """Leaves a folder as a process does that is killed."""
    keeper, end = lease._held.pop(folder)
    end.set()
    keeper.join()


def rewrite(folder, age=0.0, **changes):
    """Changes the owner of a folder as if it had been written `age` seconds before."""
    file = folder / lease.OWNER
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    before = file.stat().st_mtime - age
    os.utime(file, (before, before))


def test_a_driver_that_is_terminated_removes_its_data(tmp_path):
    (tmp_path / "mine").write_text("the user's")
    driver = process(LAY_OUT, tmp_path)
    assert len(names(tmp_path)) == 3
    assert ended(driver, signal.SIGTERM) == -signal.SIGTERM
    assert names(tmp_path) == {"mine"}


def test_what_a_killed_driver_left_is_removed_by_the_next_and_nothing_else(tmp_path, caplog):
    killed, living = process(HOLD, tmp_path), process(HOLD, tmp_path)
    try:
        before = names(tmp_path)
        assert ended(killed, signal.SIGKILL) == -signal.SIGKILL
        assert names(tmp_path) == before
        left = next(
            path
            for path in tmp_path.iterdir()
            if json.loads((path / lease.OWNER).read_text())["process"] == killed.pid
        )
        foreign = [tmp_path / f"{lease.PREFIX}{uuid.uuid4().hex[:12]}" for _ in range(2)]
        for folder in foreign:
            folder.mkdir()
        (foreign[0] / lease.OWNER).write_text(json.dumps({"process": killed.pid}))
        own = lease.lease_folder(tmp_path)
        assert f"removing {left}, which a training on {os.uname().nodename} has left" in caplog.text
        others = before - {left.name} | {folder.name for folder in foreign}
        assert names(tmp_path) == others | {os.path.basename(own)}
        lease.release_folder(own)
        assert names(tmp_path) == others
    finally:
        living.kill()
        living.communicate()


@pytest.mark.parametrize("place", ["boot", "namespace"])
@pytest.mark.parametrize(
    ("age", "stays"), [(lease.LEASE_SECONDS - 60, True), (lease.LEASE_SECONDS + 60, False)]
)
def test_a_process_of_another_machine_must_renew_its_lease(tmp_path, place, age, stays):
    folder = lease.lease_folder(tmp_path)
    forget(folder)
    rewrite(tmp_path / os.path.basename(folder), age, **{place: "another"})
    lease.release_folder(lease.lease_folder(tmp_path))
    assert os.path.exists(folder) == stays


def test_a_number_that_another_process_has_now_is_not_the_owner(tmp_path):
    folder = lease.lease_folder(tmp_path)
    forget(folder)
    lease.release_folder(lease.lease_folder(tmp_path))
    assert os.path.exists(folder)
    rewrite(tmp_path / os.path.basename(folder), started=1)
    lease.release_folder(lease.lease_folder(tmp_path))
    assert not os.path.exists(folder)


def test_a_lease_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "RENEWAL_SECONDS", 0.01)
    url = f"memory://{tmp_path}"
    folder = lease.lease_folder(url)
    system, path = open_filesystem(folder)
    system.delete_file(f"{path}/{lease.OWNER}")
    while system.get_file_info(f"{path}/{lease.OWNER}").type.name != "File":
        time.sleep(0.01)
    lease.release_folder(folder)
    lease.release_folder(folder)
    assert system.get_file_info(path).type.name == "NotFound"


def test_the_temporary_folder_is_the_users_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = lease.lease_folder(None)
    assert os.path.dirname(folder) == str(tmp_path)
    assert os.stat(folder).st_mode & 0o777 == 0o700
    np.save(f"{folder}/part", np.zeros(1))
    lease.release_folder(folder)
    assert names(tmp_path) == set()


def test_handlers_of_the_users_and_ignored_signals_stay():
    def own(*_):
        pass

    before = {each: signal.getsignal(each) for each in termination.SIGNALS}
    try:
        signal.signal(signal.SIGTERM, own)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with termination.unwound():
            assert [signal.getsignal(each) for each in termination.SIGNALS] == [own, signal.SIG_IGN]
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with termination.unwound():
            assert signal.getsignal(signal.SIGHUP) is termination._raise
        assert [signal.getsignal(each) for each in termination.SIGNALS] == [own, signal.SIG_DFL]
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
