"""What mpirun prints: the ranks' lines, and its own words on how the job ended."""

from __future__ import annotations

import re
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass

from tqdm import tqdm

KEPT_LINES = 60
# mpirun puts this before every piece that it reads from a rank, and pieces may be shorter than a line.
TAG = re.compile(r"\[\d+,(\d+)\]<std(?:out|err|diag)>:")
# Printed by TensorFlow before its log level counts, on every start: by CUDA builds, and from 2.20 by all.
NOISE = re.compile(
    r"Unable to register cu|All log messages before absl::InitializeLog"
    r"|computation_placer.*already registered|oneDNN custom operations are on"
)


@dataclass(frozen=True)
class Death:
    """How mpirun says that a rank ended: by a signal or with an exit status."""

    rank: int
    signal: int | None = None
    exitcode: int | None = None


class Output:
    """A text stream for mpirun's two streams: hands on the ranks' lines, tagged, and keeps the end of all.

    Args:
        verbose: 0 shows nothing, 1 what the ranks print, 2 also what mpirun and Horovod print.
        hosts: Host name by rank, as they become known: a part of the ranks' tags.
    """

    def __init__(self, verbose: int, hosts: Mapping[int, str]):
        self._verbose, self._hosts = verbose, hosts
        self._lock = threading.Lock()
        # By thread, which is by stream: the text that no line break or tag has ended yet, and whose it is.
        self._pending: dict[int, str] = defaultdict(str)
        self._speaker: dict[int, int | None] = defaultdict(lambda: None)
        self._partial: dict[tuple[int, int | None], str] = defaultdict(str)
        self._ranks: dict[int, deque[str]] = defaultdict(lambda: deque(maxlen=KEPT_LINES))
        self._own: deque[str] = deque(maxlen=KEPT_LINES)

    def write(self, text: str) -> int:
        """Takes text of one of the two streams; each is written to by a thread of its own."""
        with self._lock:
            stream = threading.get_ident()
            *lines, self._pending[stream] = (self._pending[stream] + text).split("\n")
            for line in lines:
                self._pieces(stream, line)
                self._end_line(stream)
        return len(text)

    def flush(self) -> None:
        """Does nothing: lines are handed on when they are complete."""

    def finish(self) -> None:
        """Hands on what never got its line break."""
        with self._lock:
            for stream, text in self._pending.items():
                self._pieces(stream, text)
            self._pending.clear()
            for (_, rank), text in self._partial.items():
                self._line(rank, text)
            self._partial.clear()

    def of_rank(self, rank: int, lines: int = 20) -> str:
        """Gives the last lines that a rank printed."""
        return "\n".join(list(self._ranks[rank])[-lines:])

    def of_mpirun(self) -> str:
        """Gives the last lines that mpirun itself printed."""
        return "\n".join(self._own)

    def death(self) -> Death | None:
        """Finds in mpirun's own words which rank ended the job, where it was not by `Abort`."""
        return find_death(self.of_mpirun())

    def _pieces(self, stream: int, line: str) -> None:
        first, *tagged = TAG.split(line)
        if first:
            self._partial[stream, self._speaker[stream]] += first
        for rank, text in zip(tagged[::2], tagged[1::2], strict=True):
            self._speaker[stream] = int(rank)
            self._partial[stream, int(rank)] += text

    def _end_line(self, stream: int) -> None:
        rank = self._speaker[stream]
        self._line(rank, self._partial.pop((stream, rank), ""))
        self._speaker[stream] = None

    def _line(self, rank: int | None, line: str) -> None:
        if rank is None:
            self._own.append(line)
            if self._verbose >= 2:
                _show(line)
            return
        # A progress bar writes over itself: what it shows in the end is what follows the last return.
        text = next((part for part in reversed(line.split("\r")) if part), "")
        if NOISE.search(text):
            return
        self._ranks[rank].append(text)
        if self._verbose >= 1:
            host = f", {self._hosts[rank]}" if rank in self._hosts else ""
            _show(f"[rank {rank}{host}] {text}")


def _show(line: str) -> None:
    # A progress bar on the terminal makes room for it.
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def find_death(text: str) -> Death | None:
    """Reads mpirun's closing words.

    Args:
        text: What mpirun printed.

    Returns:
        The rank that it names first, or None where it names none.
    """
    words = " ".join(text.split())
    if found := re.search(r"process rank (\d+) with PID \d+ on node \S+ exited on signal (\d+)", words):
        return Death(int(found[1]), signal=int(found[2]))
    if found := re.search(r"Process name: \[\[\d+,\d+\],(\d+)\] Exit code: (\d+)", words):
        return Death(int(found[1]), exitcode=int(found[2]))
    if found := re.search(r"process rank (\d+) with PID \d+ on node \S+ exiting improperly", words):
        return Death(int(found[1]), exitcode=0)
    return None
