"""The examples as a user starts them: processes of their own, from the command line."""

import io
import os
import re
import signal
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import hvdkeras
from hvdkeras.launch import environment

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = [pytest.mark.mpi, pytest.mark.slow, pytest.mark.usefixtures("no_process_left")]


def run(*command: str) -> str:
    """Runs a command with this environment's programs on its PATH; returns what it printed."""
    with tempfile.TemporaryFile("w+") as output:
        env = {**os.environ, "PATH": environment.path()}
        process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
        try:
            returncode = process.wait(280)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # A launcher takes its ranks along then.
            process.wait(10)
            returncode = "none within 280 s"
        output.seek(0)
        printed = output.read()
    assert returncode == 0, f"exit status {returncode}\n{printed[-4000:]}"
    return printed


def accuracies(printed: str) -> list[float]:
    return [float(number) for number in re.findall(r"held-out rows: (0\.\d+|1\.0+)", printed)]


@pytest.mark.parametrize(
    "name",
    [
        "single",
        "asynchronous",
        "custom_algorithm",
        pytest.param("easgd", marks=pytest.mark.spark),
        pytest.param("ensemble", marks=pytest.mark.spark),
    ],
)
def test_example_learns_the_digits(name):
    [accuracy] = accuracies(run("python", str(EXAMPLES / f"{name}.py")))
    assert accuracy > 0.94


@pytest.mark.parametrize("start", ["python", "horovodrun -np 2 python", "hvdkeras run -np 2"])
def test_one_script_starts_in_three_ways(start):
    printed = run(*start.split(), str(EXAMPLES / "horovodrun_script.py"))
    [accuracy] = accuracies(printed)
    assert accuracy > 0.94
    assert "accuracy of 2 ranks' center" in printed


@pytest.mark.spark
def test_images_are_decoded_on_the_ranks(tmp_path):
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (10, 3))
    for name, rows in (("train", 1000), ("test", 100)):
        labels, files = np.arange(rows) % 10, []
        for label in labels:
            file = io.BytesIO()
            noisy = colours[label] + random.normal(0, 10, (32, 32, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG")
            files.append(file.getvalue())
        pq.write_table(pa.table({"image": files, "label": labels}), tmp_path / f"cifar10-{name}.parquet")
    script = str(EXAMPLES / "cifar10.py")
    [accuracy] = accuracies(run("python", script, "--data", str(tmp_path), "--epochs", "5"))
    assert accuracy > 0.94


def test_comparison_has_every_algorithm_and_draws(tmp_path):
    picture = tmp_path / "algorithms.png"
    printed = run("hvdkeras", "run", "-np", "2", str(EXAMPLES / "compare_algorithms.py"), str(picture))
    everything = {getattr(hvdkeras, name) for name in hvdkeras.__all__}
    trainers = {each for each in everything if isinstance(each, type) and issubclass(each, hvdkeras.Trainer)}
    rows = re.findall(r"(\w+) +held-out accuracy (\d\.\d+)", printed)
    assert {name for name, _ in rows} == {each.__name__ for each in trainers - {hvdkeras.Trainer}}
    assert {name: value for name, value in rows if float(value) < 0.9} == {}
    assert 10_000 < picture.stat().st_size < 200_000


def test_examples_stay_short():
    lengths = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 60} == {}
    assert lengths["custom_algorithm.py"] < 40
