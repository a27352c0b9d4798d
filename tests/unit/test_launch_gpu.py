"""Which GPU and how many cores a rank takes, with device lists handed in."""

import logging
import os
import sys
from types import SimpleNamespace

import pytest

from hvdkeras.launch import gpu


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """No GPU, no TensorFlow, an environment of its own."""
    monkeypatch.setattr(os, "environ", {**os.environ, "PATH": str(tmp_path)})
    for name in ("CUDA_VISIBLE_DEVICES", "HVDKERAS_PINNED", *gpu.THREAD_VARIABLES):
        os.environ.pop(name, None)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)


@pytest.fixture
def nvidia_smi(tmp_path):
    """A stand-in for the driver's tool on the PATH."""

    def make(text, status=0):
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\nprintf '{text}'\nexit {status}\n")
        tool.chmod(0o755)

    return make


@pytest.mark.parametrize(
    ("listed", "devices"),
    [
        ("0,1", ["0", "1"]),
        ("3, 5", ["3", "5"]),
        ("GPU-8932f937,MIG-4f2c", ["GPU-8932f937", "MIG-4f2c"]),
        ("2,-1,3", ["2"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_a_list_that_is_set_is_respected(listed, devices, nvidia_smi):
    nvidia_smi("0\\n1\\n")
    os.environ["CUDA_VISIBLE_DEVICES"] = listed
    assert gpu.visible_devices() == devices


def test_without_a_list_all_gpus_of_the_host_count(nvidia_smi, caplog):
    assert gpu.visible_devices() == []
    nvidia_smi("0\\n1\\n2\\n")
    assert gpu.visible_devices() == ["0", "1", "2"]
    nvidia_smi("driver mismatch", status=9)
    assert gpu.visible_devices() == []
    assert "driver mismatch" in caplog.text


@pytest.mark.parametrize(("local_rank", "device"), [(0, "4"), (1, "6"), (2, "4"), (3, "6")])
def test_ranks_take_gpus_in_turn(local_rank, device, caplog):
    os.environ["CUDA_VISIBLE_DEVICES"] = "4,6"
    assert gpu.pin(local_rank, local_size=4) == device
    assert os.environ["CUDA_VISIBLE_DEVICES"] == device
    assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    assert "4 ranks of this host share 2 GPUs: 4, 6" in caplog.text


def test_a_second_call_changes_nothing(caplog):
    os.environ["CUDA_VISIBLE_DEVICES"] = "4,6"
    assert gpu.pin(1, 4) == "6"
    caplog.clear()
    assert gpu.pin(1, 4) == "6"
    assert caplog.text == ""


def test_sparks_list_belongs_to_the_rank_alone(caplog):
    os.environ["CUDA_VISIBLE_DEVICES"] = "4,6"
    assert gpu.pin(3, 4, devices=["7"]) == "7"
    assert "share" not in caplog.text


def test_no_gpu_is_logged_and_leaves_the_environment(caplog):
    caplog.set_level(logging.INFO)
    assert gpu.pin(0, 1) is gpu.pin(0, 1) is None
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert "no GPU: local rank 0 computes on the CPU" in caplog.text


class LoadedTensorFlow:
    """Stands for a TensorFlow that was imported before; a `started` one refuses settings, like the real."""

    def __init__(self, gpus, started):
        self.gpus, self.started, self.calls = gpus, started, []
        threading = SimpleNamespace(
            set_intra_op_parallelism_threads=self.setting("intra"),
            set_inter_op_parallelism_threads=self.setting("inter"),
        )
        self.config = SimpleNamespace(
            threading=threading,
            list_physical_devices=lambda kind: self.gpus,
            set_visible_devices=self.setting("visible"),
            experimental=SimpleNamespace(set_memory_growth=self.setting("growth")),
        )

    def setting(self, name):
        def change(*values):
            if self.started:
                raise RuntimeError("cannot be modified after initialization")
            self.calls.append((name, *values))

        return change


@pytest.mark.parametrize(("gpus", "mine"), [(["GPU:0"], "GPU:0"), (["GPU:0", "GPU:1"], "GPU:1")])
def test_a_tensorflow_imported_before_is_told(gpus, mine, monkeypatch):
    tensorflow = LoadedTensorFlow(gpus, started=False)
    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
    os.environ["CUDA_VISIBLE_DEVICES"] = "4,6"
    gpu.pin(1, 2)
    gpu.limit_threads(2, 3)
    assert tensorflow.calls == [("visible", mine, "GPU"), ("growth", mine, True), ("intra", 3), ("inter", 3)]


def test_a_tensorflow_that_has_started_is_warned_of(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tensorflow", LoadedTensorFlow(["GPU:0"], started=True))
    os.environ["CUDA_VISIBLE_DEVICES"] = "4"
    gpu.pin(0, 1)
    gpu.limit_threads(1, 2)
    assert "had taken its GPUs before" in caplog.text
    assert "had started its threads before" in caplog.text
    caplog.clear()
    gpu.limit_threads(1, 2)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("allowed", "files", "cores"),
    [
        (8, {}, 8),
        (8, {"cpu.max": "max 100000"}, 8),
        (8, {"cpu.max": "250000 100000"}, 2),
        (2, {"cpu.max": "800000 100000"}, 2),
        (8, {"cpu.max": "50000 100000"}, 1),
        (8, {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, 8),
        (8, {"cpu.cfs_quota_us": "400000", "cpu.cfs_period_us": "100000"}, 4),
    ],
)
def test_cores_are_those_of_the_container(allowed, files, cores, monkeypatch, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
    monkeypatch.setattr(gpu, "CGROUP_LIMITS", (tmp_path / "cpu.max", tmp_path / "cpu.cfs_quota_us"))
    assert gpu.cores() == cores


@pytest.mark.parametrize(
    ("ranks", "threads", "expected"), [(1, None, 8), (3, None, 2), (16, None, 1), (2, 5, 5)]
)
def test_ranks_divide_the_cores(ranks, threads, expected, monkeypatch):
    monkeypatch.setattr(gpu, "cores", lambda: 8)
    assert gpu.limit_threads(ranks, threads) == expected
    for name in gpu.THREAD_VARIABLES:
        assert os.environ[name] == str(expected)


def test_threads_must_be_positive():
    with pytest.raises(ValueError, match="threads must be a positive integer. Received: 0"):
        gpu.limit_threads(2, 0)
