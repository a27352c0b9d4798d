"""What a model and its training are made of, without the names that Keras numbers anew in every process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hvdkeras.models.recipe import Recipe
from hvdkeras.models.serialization import architecture, described, texts_of

# Numbers of objects, and shapes that follow from the rest.
_IGNORED = ("name", "shared_object_id", "build_config", "compile_config")


def structure(content: bytes) -> Any:
    """Returns the configuration that a `.keras` file holds, with layers by number instead of by name."""
    config = architecture(content)
    numbers: dict[str, str] = {}
    for name in texts_of(config, "name"):
        numbers.setdefault(name, f"layer {len(numbers)}")
    return _numbered(config, numbers)


def structures(recipe: Recipe) -> dict[str, Any]:
    """Returns by argument what keeps variables in a training, so that another can't resume it."""
    optimizers = [described(each.packed) for each in (recipe.optimizer, *recipe.others) if each is not None]
    return {
        "keras_model": structure(recipe.content),
        "worker_optimizer": _numbered(optimizers[0] if len(optimizers) == 1 else optimizers, {}),
        "metrics": _numbered(described(recipe.arguments.get("metrics")), {}),
        "weighted_metrics": _numbered(described(recipe.arguments.get("weighted_metrics")), {}),
    }


def structural_differences(model: Any, other: Any, where: str = "model") -> Iterator[str]:
    """Describes where two structures differ, a line for each place.

    Args:
        model: what `structure` returned.
        other: the same of another model.
        where: the place of both, for the messages.
    """
    if isinstance(model, dict) and isinstance(other, dict):
        for key in sorted(model.keys() | other.keys()):
            yield from structural_differences(model.get(key), other.get(key), f"{where}.{key}")
    elif isinstance(model, list) and isinstance(other, list) and len(model) == len(other):
        for number, pair in enumerate(zip(model, other, strict=True)):
            yield from structural_differences(*pair, f"{where}[{number}]")
    elif isinstance(model, list) and isinstance(other, list):
        yield f"{where} has {len(model)} entries instead of {len(other)}"
    elif model != other:
        yield f"{where} is {model!r} instead of {other!r}"


def _numbered(config: Any, numbers: dict[str, str]) -> Any:
    if isinstance(config, dict):
        return {key: _numbered(item, numbers) for key, item in config.items() if key not in _IGNORED}
    if isinstance(config, list):
        return [_numbered(item, numbers) for item in config]
    return numbers.get(config, config) if isinstance(config, str) else config
