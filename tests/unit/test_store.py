"""Text files behind local paths and URLs."""

import uuid

import pytest

from hvdkeras.data.store import open_text

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
