"""Names and values in messages: the nearest known name, and a few lines at most, whatever was received."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any

# With 8 names or values of at most 60 characters, a list fills less than half of an 80 x 24 terminal.
_MOST = 8
_LONGEST = 60
# A received value that is one long text, such as the representation of a model.
_MOST_CHARACTERS = 400


class _Short(reprlib.Repr):
    """Representations that stop after a few elements of a list or dict, and inside long texts."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = _MOST
        self.maxstring = self.maxother = 2 * _LONGEST


_short = _Short()


def shown(value: Any) -> str:
    """Returns a received value as a message shows it: `repr(value)`, cut where that is long."""
    text = cut(_short.repr(value), _MOST_CHARACTERS)
    count = len(value) if isinstance(value, list | tuple | dict | set | frozenset) else 0
    return f"{text} ({count:,} elements)" if count > _MOST else text


def listed(names: Iterable[Any], separator: str = ", ", longest: int = _LONGEST) -> str:
    """Returns names one after another; of many the first ones and the number of the others.

    Args:
        names: names, as they are to be shown.
        separator: between two names.
        longest: characters of a name; longer ones are cut.
    """
    texts = [cut(str(name), longest) for name in names]
    more = len(texts) - _MOST
    return separator.join(texts[:_MOST]) + (f" and {more:,} more" if more > 0 else "")


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Returns " Did you mean 'this' or 'that'?" with the nearest known names; "" if none is near."""
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    near = near or [each for each in known if each.lower() == name.lower()][:3]
    return f" Did you mean {' or '.join(repr(cut(each)) for each in near)}?" if near else ""


def cut(text: str, longest: int = _LONGEST) -> str:
    """Returns a text of at most so many characters."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
