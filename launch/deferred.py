"""Libraries that Keras imports and a training rarely uses, loaded at their first use.

`import keras` also imports scikit-learn, matplotlib and pandas where they are installed: a third of the
processor time that it takes. On ranks Keras's wrappers, which need scikit-learn, and its plots are executed
when something in them is used. Where Keras asks whether an array is pandas's, other classes stand for its
own until something imports it: there are no objects of them before. Where another version of Keras has no
such modules, all is imported as usual.
"""

from __future__ import annotations

import builtins
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import Any

# Modules of Keras that nothing asks for a name while Keras is imported.
DEFERRED = frozenset(
    f"{api}.{room}"
    for api in ("keras", "keras.api", "keras._tf_keras.keras", "keras.api._tf_keras.keras", "keras.src")
    for room in ("wrappers", "visualization")
)
# Modules of Keras that ask whether an array is pandas's.
USERS_OF_PANDAS = frozenset(
    f"keras.src.trainers.data_adapters.{name}" for name in ("array_slicing", "array_data_adapter")
)


def defer() -> None:
    """From now on, imports of Keras leave out these libraries. It does nothing once Keras is imported."""
    if "keras" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in DEFERRED and name not in USERS_OF_PANDAS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            make = _DeferringLoader if name in DEFERRED else _WithoutPandas
            spec.loader = make(spec.loader)
        return spec


class _Loader(Loader):
    """Executes a module in its own way; the module itself and its spec have the loader that it would have."""

    def __init__(self, loader: Loader):
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = module.__spec__.loader = self._loader
        self._execute(module)

    def _execute(self, module: ModuleType) -> None:
        raise NotImplementedError


class _DeferringLoader(_Loader):
    def _execute(self, module: ModuleType) -> None:
        # Not among the module's names, which are the user's.
        _waiting[module.__name__] = threading.RLock()
        module.__class__ = _Deferred


# By name, the locks of modules that have not been executed.
_waiting: dict[str, threading.RLock] = {}


class _Deferred(ModuleType):
    """A module that is executed when it is asked for a name that it does not have."""

    def __getattr__(self, name: str) -> Any:
        _execute(self)
        return ModuleType.__getattribute__(self, name)

    def __dir__(self) -> list[str]:
        _execute(self)
        return dir(self)


def _execute(module: ModuleType) -> None:
    lock = _waiting.get(module.__name__)
    if lock is None:
        return
    with lock:
        # Neither a thread that has waited nor the module itself, while it is executed, begins again.
        if type(module) is _Deferred and _waiting.pop(module.__name__, None):
            try:
                module.__class__ = ModuleType
                module.__spec__.loader.exec_module(module)
            except BaseException:
                module.__class__ = _Deferred
                _waiting[module.__name__] = lock
                raise


class _WithoutPandas(_Loader):
    def _execute(self, module: ModuleType) -> None:
        # What this module imports, nobody else's imports.
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _import}
        self._loader.exec_module(module)


def _import(name: str, *args: Any, **kwargs: Any) -> ModuleType:
    if name == "pandas" and name not in sys.modules and find_spec(name) is not None:
        return _Pandas(name)
    return builtins.__import__(name, *args, **kwargs)


class _Pandas(ModuleType):
    """Stands for pandas in a module that asks whether objects are its."""

    def __getattr__(self, name: str) -> Any:
        if name in ("DataFrame", "Series"):
            return _Type(name, (), {})
        return getattr(import_module("pandas"), name)


class _Type(type):
    """Stands for a class of pandas, of which there are no objects before pandas is imported."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return "pandas" in sys.modules and isinstance(instance, getattr(sys.modules["pandas"], cls.__name__))
