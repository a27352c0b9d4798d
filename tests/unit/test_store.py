"""Files and folders behind local paths and URLs."""

import os
import subprocess
import uuid

import numpy as np
import pytest

from hvdkeras.checkpoint.folder import CheckpointFolder
from hvdkeras.data import store
from hvdkeras.data.columns import Column
from hvdkeras.data.store import joined, map_file, normalized, open_filesystem, open_text
from hvdkeras.data.writing import write_arrays

TEXT = "one line\nzwei Wörter\r\n\n"


@pytest.mark.parametrize("scheme", ["", "file://", "local://", "memory://"])
def test_text_comes_back_from_a_new_folder(tmp_path, scheme):
    url = f"{scheme}{tmp_path}/{uuid.uuid4().hex}/a b.json.gz"
    with pytest.raises(FileNotFoundError), open_text(url, "r"):
        pass
    for text in ("something longer than what replaces it, by far\n", TEXT):
        with open_text(url, "w") as file:
            file.write(text)
    with open_text(url, "r") as file:
        assert file.read() == TEXT


def test_local_files_are_plain_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_text("file.json", "w") as file:
        file.write(TEXT)
    assert (tmp_path / "file.json").read_bytes() == TEXT.encode()


def test_what_can_not_be_opened(tmp_path):
    message = (
        r"timeline must be a local path or a URL that pyarrow or fsspec opens. Received: 'nonsense://file'"
    )
    with pytest.raises(ValueError, match=message), open_text("nonsense://file", "w", "timeline"):
        pass
    with pytest.raises(OSError, match=str(tmp_path)), open_text(tmp_path, "w"):
        pass


@pytest.mark.parametrize("url", ["dbfs:/x", "hdfs:/x", "s3a:bucket/x", "run:1"])
def test_a_url_that_is_not_understood_is_no_folder_of_that_name(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=f"store must be a local path or a URL .* '{url}'.* written './{url}'"
    ):
        open_filesystem(url)
    system, path = open_filesystem(f"./{url}")
    assert (type(system).__name__, path) == ("LocalFileSystem", f"{tmp_path}/{url}")


def test_databricks_files_are_where_they_are_mounted(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_DATABRICKS", str(tmp_path))
    for url in ("dbfs:/runs/x", "dbfs:///runs/x/"):
        assert normalized(url) == f"{tmp_path}/runs/x"


def test_hadoops_names_of_s3_open_it():
    system, path = open_filesystem("s3a://bucket/x?region=eu-west-1")
    assert (type(system).__name__, path, system.region) == ("S3FileSystem", "bucket/x", "eu-west-1")


@pytest.mark.parametrize(
    ("url", "entry"),
    [
        ("s3://bucket/a/?region=eu-west-1", "s3://bucket/a/shards?region=eu-west-1"),
        ("s3://bucket/a/", "s3://bucket/a/shards"),
        ("/a/b?c/", "/a/b?c/shards"),
    ],
)
def test_an_entry_stands_before_the_query(url, entry):
    assert joined(normalized(url), "shards") == entry


def test_mapped_files_keep_no_descriptor(tmp_path):
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.save(tmp_path / "rows.npy", rows)
    before = len(os.listdir("/proc/self/fd"))
    mapped = [map_file(str(tmp_path / "rows.npy")) for _ in range(50)]
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    np.testing.assert_array_equal(mapped[-1], rows)
    assert not mapped[0].flags.writeable


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 256 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("NOT TESTED ON A FULL DISK: no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_store_without_room_is_refused_before_anything_is_written(full_disk):
    column = Column("x", (100,), "float32")
    message = "store must have room .* with 2[0-9,]{6} bytes free; the data needs 400,000 bytes"
    with pytest.raises(OSError, match=message):
        write_arrays({"x": np.zeros((1000, 100), np.float32)}, (column,), full_disk)
    assert list(full_disk.iterdir()) == []


# NumPy has a file of its own that it can't end, either.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_store_whose_room_ends_is_named(full_disk):
    column = Column("x", (), "uint8", encoded=True)
    with pytest.raises(OSError, match="store must have room .* which had 2[0-9,]{6} bytes free before"):
        write_arrays({"x": [os.urandom(100_000) for _ in range(10)]}, (column,), full_disk)
    assert list(full_disk.iterdir()) == []
    folder = CheckpointFolder(str(full_disk / "run"))
    folder.make()
    folder.create(1)
    with pytest.raises(OSError, match="center.npz can't be written: .*checkpoint must have room .* free"):
        folder.write_arrays(1, "center.npz", {"center": np.zeros(100_000, np.float32)})
