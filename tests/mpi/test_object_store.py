"""Shards, checkpoints, timelines and histories in an object store; its keys are in the environment."""

from urllib.request import Request, urlopen

import numpy as np
import pytest
from pyarrow import fs

from hvdkeras.data.columns import Column, DataError
from hvdkeras.data.store import open_filesystem
from hvdkeras.data.writing import write_arrays
from hvdkeras.history import History

from digits import FOUND, data, model

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module")
def variables():
    """The address of a server with the bucket `rows`, and keys to it, as variables of the environment."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    urlopen(Request(f"{address}/rows", method="PUT"), timeout=10).close()
    yield {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    server.stop()


@pytest.fixture(autouse=True)
def environment(variables, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def content(url: str) -> set[str]:
    """The names of all objects, without those that stand for folders."""
    system, path = open_filesystem(url)
    entries = system.get_file_info(fs.FileSelector(path, recursive=True))
    return {entry.path for entry in entries if entry.type == fs.FileType.File}


def put(url: str) -> None:
    system, path = open_filesystem(url)
    with system.open_output_stream(path) as file:
        file.write(b"the user's")


def test_rows_that_are_refused_leave_nothing():
    put("s3://rows/refused/mine")
    with pytest.raises(DataError, match="must hold"):
        write_arrays({"x": np.array([1, np.nan])}, [Column("x", (), "float32")], "s3://rows/refused")
    assert content("s3://rows/refused") == {"rows/refused/mine"}


def train(variables: dict[str, str]) -> None:
    import hvdkeras

    rows = {name: values[:512] for name, values in data()[0].items()}
    found = {**FOUND, "num_workers": 2, "learning_rate": 0.1, "rho": 1.25, "validation_split": 0.2}
    remote = {
        "store": "s3://rows/jobs/?region=us-east-1",
        "checkpoint": "s3a://rows/run/",
        "checkpoints_kept": 1,
        "timeline": "s3://rows/timelines/first.json",
    }
    wanted = hvdkeras.EASGD(model(), num_epoch=2, **found).train(rows)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        hvdkeras.EASGD(model(), num_epoch=1, **found, **remote).train(rows)
        used = hvdkeras.EASGD(model(), num_epoch=2, **found, **remote)
        received = used.train(rows, resume=True)
        for one, other in zip(received.get_weights(), wanted.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
        used.history.save("s3://rows/history.json")


def test_a_training_in_an_object_store_is_that_on_local_files(on_ranks, variables):
    put("s3://rows/jobs/mine")
    on_ranks(2, train, variables)
    assert History.load("s3://rows/history.json").rows_seen() == [410, 410]
    checkpoint = ["center.npz", "model.keras", "training.json"]
    checkpoint += [f"rank-{rank:05d}.{kind}" for rank in range(2) for kind in ("json", "npz")]
    wanted = {"rows/jobs/mine", "rows/history.json", "rows/timelines/first.json"}
    wanted.update(f"rows/run/00000002/{name}" for name in checkpoint)
    wanted.add("rows/run/owner.json")
    assert content("s3://rows") - {"rows/refused/mine"} == wanted
