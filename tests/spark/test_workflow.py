"""The whole workflow, from a CSV file to a saved pipeline, as a script and as a notebook."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = [pytest.mark.spark, pytest.mark.slow]


def accuracy(printed: str) -> float:
    return float(re.search(r"held-out rows, from the saved pipeline: ([\d.]+)", printed)[1])


def test_script():
    script = subprocess.run(
        [sys.executable, EXAMPLES / "workflow.py"], capture_output=True, text=True, timeout=280, check=False
    )
    assert script.returncode == 0, script.stderr[-4000:]
    assert accuracy(script.stdout) > 0.9


def test_notebook_draws_the_training_curves():
    notebook = nbformat.read(EXAMPLES / "workflow.ipynb", as_version=4)
    NotebookClient(notebook, timeout=280, resources={"metadata": {"path": os.getcwd()}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert accuracy(printed) > 0.9
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 1
    assert len(pictures[0]) > 10_000
