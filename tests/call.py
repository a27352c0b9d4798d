"""What each rank of a test runs: `call.py FOLDER` calls the pickled function there.

The function's result, or the traceback of what it raised, is left in the same folder under the rank's number.
"""

import pickle
import sys
import traceback
from pathlib import Path

import cloudpickle
from mpi4py import MPI


def main(folder: Path) -> None:
    rank = MPI.COMM_WORLD.rank
    fn, args = pickle.loads((folder / "call").read_bytes())
    try:
        result = cloudpickle.dumps(fn(*args))
    except BaseException:
        (folder / f"error.{rank}").write_text(traceback.format_exc())
        raise
    # Who waits for the file finds all of it.
    (folder / f"part.{rank}").write_bytes(result)
    (folder / f"part.{rank}").rename(folder / f"result.{rank}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
