"""Files that reach the executors of Spark Connect.

This file does not import pandas: ranks load it with the trainers.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Artifact:
    """A file that Spark Connect copies to the executors; `value` reads a pickle, as a broadcast's does."""

    name: str

    @classmethod
    def of(cls, session: Any, content: bytes) -> Artifact:
        """Sends a file; the session sends it in parts of 32 KB."""
        artifact = cls(f"hvdkeras-{content_key(content)}")
        with tempfile.TemporaryDirectory(prefix="hvdkeras-") as folder:
            path = os.path.join(folder, artifact.name)
            with open(path, "wb") as file:
                file.write(content)
            session.addArtifacts(path, file=True)
        return artifact

    @property
    def path(self) -> str:
        """Where an executor has the file."""
        from pyspark import SparkFiles

        return SparkFiles.get(self.name)

    @property
    def value(self) -> Any:
        with open(self.path, "rb") as file:
            return pickle.load(file)


def content_key(*parts: bytes) -> str:
    """Returns a hash of the parts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
