"""Checkpoints on disk: complete or nothing, in open formats; a rule's state there and back."""

import json

import numpy as np
import pytest

from hvdkeras.checkpoint.folder import Checkpoints
from hvdkeras.checkpoint.rank_state import decode, encode


def write(checkpoints: Checkpoints, number: int, complete: bool) -> None:
    checkpoints.create(number)
    checkpoints.write_arrays(number, "center.npz", {"center": np.full((1, 3), number, np.float32)})
    if complete:
        checkpoints.complete(number, {"algorithm": "EASGD", "progress": number / 2})


def test_only_complete_checkpoints_count(tmp_path):
    checkpoints = Checkpoints(str(tmp_path / "run"))
    checkpoints.check("EASGD", resume=False)
    assert checkpoints.latest() is None
    write(checkpoints, 1, complete=True)
    write(checkpoints, 2, complete=False)
    assert checkpoints.numbers() == [1, 2]
    assert checkpoints.latest() == 1
    checkpoints.check("EASGD", resume=True)
    with pytest.raises(ValueError, match="without checkpoints, unless resume=True. Received: .* of EASGD"):
        checkpoints.check("EASGD", resume=False)
    with pytest.raises(ValueError, match="the same algorithm to resume from, ADAG. Received: .* of EASGD"):
        checkpoints.check("ADAG", resume=True)
    assert checkpoints.manifest(1)["progress"] == 0.5
    np.testing.assert_array_equal(checkpoints.read_arrays(1, "center.npz")["center"], [[1, 1, 1]])


def test_a_deleted_checkpoint_is_gone(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    write(checkpoints, 1, complete=True)
    write(checkpoints, 2, complete=True)
    checkpoints.delete(1)
    assert checkpoints.numbers() == [2]


def test_a_url_is_as_good_as_a_path(tmp_path):
    write(Checkpoints(f"file://{tmp_path}/run"), 3, complete=True)
    assert Checkpoints(str(tmp_path / "run")).latest() == 3


def test_the_files_are_open_formats(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    write(checkpoints, 1, complete=True)
    assert json.loads((tmp_path / "00000001" / "training.json").read_text())["version"] == 1
    with np.load(tmp_path / "00000001" / "center.npz", allow_pickle=False) as arrays:
        assert arrays["center"].dtype == np.float32


def test_a_later_version_is_refused(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    write(checkpoints, 1, complete=True)
    (tmp_path / "00000001" / "training.json").write_text('{"version": 99}')
    with pytest.raises(ValueError, match="version up to 1. Received: 99"):
        checkpoints.manifest(1)


def test_a_rule_may_keep_whatever_consists_of_arrays_and_numbers():
    state = {"velocity": np.arange(3, dtype=np.float32), 4: (1, [2.5, None], np.int64(7)), "name": "a"}
    arrays = {}
    text = json.dumps(encode(state, arrays))
    found = decode(json.loads(text), arrays)
    np.testing.assert_array_equal(found["velocity"], [0, 1, 2])
    assert found["velocity"].dtype == np.float32
    assert found[4] == (1, [2.5, None], 7)
    assert isinstance(found[4], tuple)
    assert found["name"] == "a"


def test_a_state_of_something_else_is_refused():
    with pytest.raises(TypeError, match="arrays, numbers, .* Received: object"):
        encode([object()], {})


def test_a_folder_that_can_not_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="checkpoint must be a folder or URL that can be written"):
        Checkpoints(str(tmp_path / "file" / "run")).check("EASGD", resume=False)
