"""A Spark driver on a host of the tests: calls the pickled function with a session of the cluster.

Where its folder holds `environment.tar.gz`, every executor unpacks that and runs the Python in it.
"""

import os
import pickle
import sys
import traceback
from pathlib import Path

import cloudpickle
from pyspark.sql import SparkSession


def main(folder: Path, address: str) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))  # what test modules import
    fn, args = pickle.loads((folder / "call").read_bytes())
    builder = SparkSession.builder
    archive = folder / "environment.tar.gz"
    if archive.exists():
        os.environ["PYSPARK_PYTHON"] = "./environment/bin/python"
        builder = builder.config("spark.archives", f"{archive}#environment")
    session = (
        builder.master(f"spark://{address}:7077")
        .appName("hvdkeras tests between hosts")
        .config("spark.driver.host", address)
        .config("spark.executor.memory", "1g")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    try:
        result = cloudpickle.dumps(fn(session, *args))
    except BaseException:
        (folder / "error").write_text(traceback.format_exc())
        raise
    finally:
        session.stop()
    (folder / "result").write_bytes(result)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
