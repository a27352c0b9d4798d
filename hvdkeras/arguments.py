"""Declared arguments of a class: checked whenever they are set, and listed in its signature.

    class Optimizer(Declared):
        rate: float = argument(0.1, positive(float))

A check is a function `check(name, value)` that returns the value to keep, or raises ValueError with the
constraint and the value.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from hvdkeras.naming import did_you_mean, listed, shown

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
elif sys.version_info >= (3, 11):
    from typing import dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Callable[[type], type]:
        return lambda cls: cls


Check = Callable[[str, Any], Any]


class Argument:
    """A data descriptor: the value is in the instance's `__dict__`, and every assignment is checked.

    Args:
        default: the value where none is given.
        check: see the module.
    """

    def __init__(self, default: Any, check: Check | None = None) -> None:
        self.default, self.check = default, check

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        try:
            return instance.__dict__[self.name]
        except KeyError:
            raise AttributeError(f"{type(instance).__name__} has no {self.name} yet") from None

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self.name] = value if self.check is None else self.check(self.name, value)
        instance.__dict__["_given"] = instance.__dict__.get("_given", frozenset()) | {self.name}


def argument(default: Any, check: Check | None = None) -> Any:
    """Declares an argument of a `Declared` class; see `Argument`."""
    return Argument(default, check)


@dataclass_transform(kw_only_default=True, field_specifiers=(argument,))
class Declared:
    """A class with declared arguments, all given by name."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # For help(), notebooks and `check_names`; a class that defines its own __init__ adds its arguments.
        cls.__signature__ = _signature(cls)

    def set_arguments(self, given: Mapping[str, Any]) -> None:
        """Sets all declared arguments, those not given to their defaults.

        Raises:
            TypeError: a name is no argument of the class; the message has the nearest names.
            ValueError: a value does not fit.
        """
        check_names(type(self), given)
        for name, declared in declared_arguments(type(self)).items():
            setattr(self, name, given.get(name, declared.default))
        self._given = frozenset(given)

    def reset(self, name: str) -> None:
        """Sets an argument to its default, as if it had not been given."""
        setattr(self, name, declared_arguments(type(self))[name].default)
        self._given = self._given - {name}

    def is_given(self, name: str) -> bool:
        """Returns whether an argument was given to the constructor, or set since."""
        return name in self._given


def declared_arguments(cls: type) -> dict[str, Argument]:
    """Returns the declared arguments of a class by name, those of its bases first."""
    found = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, Argument):
                found[name] = value
            elif name in found:
                del found[name]  # a subclass has fixed it
    return found


@cache
def descriptions(cls: type) -> dict[str, str]:
    """Returns what the docstrings of a class and of its bases say of its arguments, by name."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        lines = inspect.cleandoc(base.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n     .*)*)", lines, re.MULTILINE):
            sentence = " ".join(text.split())
            # "rho: as in `EASGD`." has the reader turn to a class whose description is found already.
            if name not in found or not sentence.startswith("as in `"):
                found[name] = sentence
    return found


# What users of Keras may write, and our names for it.
_KERAS_NAMES = {
    "epochs": "num_epoch",
    "num_epochs": "num_epoch",
    "optimizer": "worker_optimizer",
    "lr": "learning_rate",
    "model": "keras_model",
    "workers": "num_workers",
    "num_proc": "num_workers",
    "window": "communication_window",
    "feature_cols": "features_col",
    "label_cols": "label_col",
}


def check_names(cls: type, given: Iterable[str]) -> None:
    """Raises TypeError for the first name that is no argument of a class, with the nearest names."""
    known = [name for name in inspect.signature(cls).parameters if name != "arguments"]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise TypeError(unknown_name(f"{cls.__name__} has no argument", unknown[0], known))


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Returns a message about an unknown name, with the nearest names that are known.

    Args:
        what: how the message begins, such as "EASGD has no argument".
        name: the unknown name.
        known: the names that would fit.
    """
    known = list(known)
    if _KERAS_NAMES.get(name) in known:
        return f"{what} {name!r}; here it is called {_KERAS_NAMES[name]!r}"
    return f"{what} {shown(name)}.{did_you_mean(name, known) or f' It has {listed(known)}'}"


def _signature(cls: type) -> inspect.Signature:
    """The arguments of all `__init__` that pass the rest on to their base, then the declared ones."""
    parameters: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        own = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        for parameter in own:
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                parameters.setdefault(parameter.name, parameter)
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in own):
            break
    for name, declared in declared_arguments(cls).items():
        keyword = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=declared.default)
        parameters.setdefault(name, keyword)
    return inspect.Signature(sorted(parameters.values(), key=lambda parameter: parameter.kind))


def _is_number(value: Any) -> bool:
    """Whether a value is a number; Python counts booleans among them."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)


def positive(kind: type) -> Check:
    """Returns the check for a positive, finite number of a kind, int or float."""
    noun = "integer" if kind is int else "number"

    def check(name: str, value: Any) -> Any:
        if not _is_number(value) or not np.isfinite(value) or value <= 0 or kind(value) != value:
            raise ValueError(f"{name} must be a positive {noun}. Received: {shown(value)}")
        return kind(value)

    return check


def whole(name: str, value: Any) -> int:
    """Checks for an integer from 0."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise ValueError(f"{name} must be an integer from 0. Received: {shown(value)}")
    return int(value)


def fraction(*, zero: bool = False) -> Check:
    """Returns the check for a number between 0 and 1; `zero` allows 0, too."""
    constraint = "be at least 0 and below 1" if zero else "lie between 0 and 1"

    def check(name: str, value: Any) -> float:
        if not _is_number(value) or not (value >= 0 if zero else value > 0) or not value < 1:
            raise ValueError(f"{name} must {constraint}. Received: {shown(value)}")
        return float(value)

    return check


def not_negative(name: str, value: Any) -> float:
    """Checks for a finite number from 0."""
    if not _is_number(value) or not np.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a number from 0. Received: {shown(value)}")
    return float(value)


def optional(check: Check) -> Check:
    """Returns a check that keeps None and applies `check` to everything else."""
    return lambda name, value: None if value is None else check(name, value)


def one_of(*choices: Any) -> Check:
    """Returns the check for one of several values."""

    def check(name: str, value: Any) -> Any:
        if not any(value is choice or value == choice for choice in choices):
            expected = f"{', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}"
            raise ValueError(f"{name} must be {expected}. Received: {shown(value)}")
        return value

    return check


def flag(name: str, value: Any) -> bool:
    """Checks for True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False. Received: {shown(value)}")
    return bool(value)


def path(name: str, value: Any) -> str:
    """Checks for a path or URL."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ValueError(f"{name} must be a path or URL. Received: {shown(value)}")
    return os.fspath(value)


def dict_by_name(name: str, value: Any) -> dict[str, Any]:
    """Checks for a dict whose keys are strings; None becomes an empty one."""
    if not isinstance(value or {}, Mapping) or not all(isinstance(key, str) for key in value or {}):
        raise ValueError(f"{name} must be a dict by name. Received: {shown(value)}")
    return dict(value or {})
