"""Files and folders behind local paths and URLs."""

import os
import uuid

import numpy as np
import pytest

from hvdkeras.data import store
from hvdkeras.data.store import joined, map_file, normalized, open_filesystem, open_text

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
