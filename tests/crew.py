"""What each rank of a crew runs: `crew.py FOLDER` makes the calls that come, one by one.

A call that raises ends it, and so do some seconds without one, or the file `end`.
"""

import itertools
import sys
import time
from pathlib import Path

from call import main

from ranks import IDLE_SECONDS


def comes(call: Path, end: Path) -> bool:
    leave = time.monotonic() + IDLE_SECONDS
    while not call.exists():
        if end.exists() or time.monotonic() > leave:
            return False
        time.sleep(0.005)
    return True


if __name__ == "__main__":
    root = Path(sys.argv[1])
    for number in itertools.count():
        if not comes(root / str(number) / "call", root / "end"):
            break
        main(root / str(number))
