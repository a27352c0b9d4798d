"""What mpirun prints: the ranks' lines, and its own words on how the job ended."""

from __future__ import annotations

import codecs
import os
import re
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from tqdm import tqdm

KEPT_LINES = 60
# mpirun puts this before every piece that it reads from a rank, and pieces may be shorter than a line.
TAG = re.compile(r"\[\d+,(\d+)\]<std(?:out|err|diag)>:")
BEGUN_TAG = re.compile(r"\[[\d,]*(\](<[a-z]*>?)?)?\Z")
LONGEST_TAG = 40
PIECE_BYTES = 1 << 16
# Longer lines come in pieces: nothing that a rank prints may fill the driver's memory.
LONGEST_LINE = 1 << 16
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


class Line:
    """A line that is not complete yet. A progress bar writes over itself: what it shows last counts."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._overwritten = ""
        self.length = 0

    def add(self, text: str) -> None:
        *overwritten, rest = text.split("\r")
        for part in overwritten:
            self._overwritten = "".join([*self._pieces, part]) or self._overwritten
            self._pieces, self.length = [], 0
        self._pieces.append(rest)
        self.length += len(rest)

    def text(self) -> str:
        return "".join(self._pieces) or self._overwritten


class Output:
    """A text stream for mpirun's two streams: hands on the ranks' lines, tagged, and keeps the end of all.

    Args:
        verbose: 0 shows nothing, 1 what the ranks print, 2 also what mpirun and Horovod print.
        hosts: host name by rank, as they become known: a part of the ranks' tags.
    """

    def __init__(self, verbose: int, hosts: Mapping[int, str]):
        self._verbose, self._hosts = verbose, hosts
        self._lock = threading.Lock()
        # By thread, which is by stream: what may be the beginning of a tag, and whose line it is.
        self._pending: dict[int, str] = defaultdict(str)
        self._speaker: dict[int, int | None] = defaultdict(lambda: None)
        self._partial: dict[tuple[int, int | None], Line] = {}
        self._ranks: dict[int, deque[str]] = defaultdict(lambda: deque(maxlen=KEPT_LINES))
        self._own: deque[str] = deque(maxlen=KEPT_LINES)

    def read(self, stream: BinaryIO) -> None:
        """Takes all that comes of one of the two streams, until its end; for a thread of its own.

        What is not UTF-8 is replaced: a pipe that nobody reads would block mpirun and all ranks.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with stream:
            while data := os.read(stream.fileno(), PIECE_BYTES):
                self.write(decoder.decode(data))
        self.write(decoder.decode(b"", final=True))

    def write(self, text: str) -> int:
        """Takes text of one of the two streams; each is written to by a thread of its own."""
        with self._lock:
            stream = threading.get_ident()
            text, self._pending[stream] = _whole_tags(self._pending[stream] + text)
            *lines, rest = text.split("\n")
            for line in lines:
                self._pieces(stream, line)
                self._end_line(stream)
            self._pieces(stream, rest)
        return len(text)

    def finish(self) -> None:
        """Hands on what never got its line break."""
        with self._lock:
            for stream, text in self._pending.items():
                self._pieces(stream, text)
            self._pending.clear()
            for (_, rank), line in self._partial.items():
                self._line(rank, line.text())
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
            self._add(stream, self._speaker[stream], first)
        for rank, text in zip(tagged[::2], tagged[1::2], strict=True):
            self._speaker[stream] = int(rank)
            self._add(stream, int(rank), text)

    def _add(self, stream: int, rank: int | None, text: str) -> None:
        line = self._partial.setdefault((stream, rank), Line())
        line.add(text)
        if line.length > LONGEST_LINE:
            self._line(rank, self._partial.pop((stream, rank)).text())

    def _end_line(self, stream: int) -> None:
        rank = self._speaker[stream]
        self._line(rank, self._partial.pop((stream, rank), Line()).text())
        self._speaker[stream] = None

    def _line(self, rank: int | None, line: str) -> None:
        if rank is None:
            self._own.append(line)
            if self._verbose >= 2:
                _show(line)
            return
        if NOISE.search(line):
            return
        self._ranks[rank].append(line)
        if self._verbose >= 1:
            host = f", {self._hosts[rank]}" if rank in self._hosts else ""
            _show(f"[rank {rank}{host}] {line}")


def _whole_tags(text: str) -> tuple[str, str]:
    """Parts what may be the beginning of a tag from the end of a text."""
    begun = BEGUN_TAG.search(text, max(0, len(text) - LONGEST_TAG))
    return (text[: begun.start()], begun[0]) if begun else (text, "")


def _show(line: str) -> None:
    # A progress bar on the terminal makes room for it.
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def find_death(text: str) -> Death | None:
    """Reads mpirun's closing words.

    Args:
        text: what mpirun printed.

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
