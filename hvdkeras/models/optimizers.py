"""A Keras optimizer with its exclusions and its state, in a form that travels to ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from hvdkeras.models.serialization import pack
from hvdkeras.models.values import read, same


def has_schedule(optimizer: Any) -> bool:
    """Returns whether an optimizer's learning rate follows a schedule, so that nobody can set it."""
    return any(callable(getattr(each, "_learning_rate", None)) for each in _innermost(optimizer))


def learning_rate(optimizer: Any) -> float | None:
    """Returns an optimizer's learning rate now; None where it has several, or none, as a MultiOptimizer."""
    rates = [each.learning_rate for each in _innermost(optimizer) if hasattr(each, "learning_rate")]
    return _number(rates[0]) if len(rates) == 1 else None


def learning_rates(optimizer: Any) -> list[float]:
    """Returns the rates of an optimizer, or of those that it is made of, that no schedule sets."""
    return [_number(each.learning_rate) for each in _settable(optimizer)]


def set_learning_rates(optimizer: Any, rates: Sequence[float]) -> None:
    """Sets what `learning_rates` returned."""
    for each, rate in zip(_settable(optimizer), rates, strict=True):
        each.learning_rate = rate


def uses_moving_average(optimizer: Any) -> bool:
    """Returns whether an optimizer keeps a moving average of the weights, Keras's `use_ema`."""
    return any(getattr(each, "use_ema", False) for each in _innermost(optimizer))


def moving_averages(model: Any) -> list[Any]:
    """Returns for each variable that trains its moving average, or itself where the optimizer keeps none."""
    averages = {}
    for each in _innermost(model.optimizer):
        if getattr(each, "use_ema", False):
            pairs = zip(each._trainable_variables, each._model_variables_moving_average, strict=True)
            averages.update({id(variable): average for variable, average in pairs if average is not None})
    return [averages.get(id(variable), variable) for variable in model.trainable_variables]


def optimizers_of(model: Any) -> list[Any]:
    """Returns the optimizers that a model holds as attributes, or in lists and dicts there, its own first.

    A model with a `train_step` of its own may apply more than one.
    """
    import keras

    found: dict[int, Any] = {}

    def collect(value: Any) -> None:
        if isinstance(value, keras.optimizers.Optimizer):
            found.setdefault(id(value), value)
        elif isinstance(value, Mapping | list | tuple):
            for item in value.values() if isinstance(value, Mapping) else value:
                collect(item)

    collect([getattr(model, "optimizer", None), vars(model)])
    return list(found.values())


class HiddenOptimizerError(ValueError):
    """A model's train_step applies an optimizer that is no attribute of the model."""


@contextmanager
def others_refused(is_allowed: Callable[[Any], bool]) -> Iterator[None]:
    """While it is open, an optimizer raises HiddenOptimizerError when it is applied and is not allowed."""
    import keras

    kind, original = keras.optimizers.Optimizer, keras.optimizers.Optimizer.apply

    def apply(optimizer: Any, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        if not is_allowed(optimizer):
            raise HiddenOptimizerError(
                "the model's train_step must apply only optimizers that are attributes of the model, whose "
                f"gradients can be averaged over the ranks. Received: {type(optimizer).__name__} "
                f"{optimizer.name!r}"
            )
        return original(optimizer, grads, trainable_variables)

    kind.apply = apply
    try:
        yield
    finally:
        kind.apply = original


def hidden_refused(model: Any) -> Any:
    """Returns `others_refused` for all but a model's own optimizers."""
    own = {id(part) for optimizer in optimizers_of(model) for part in _parts(optimizer)}
    return others_refused(lambda optimizer: id(optimizer) in own)


def check_accumulation(model: Any, accumulation: int) -> None:
    """Raises ValueError where gradients of more than one optimizer would have to be accumulated."""
    count = len(optimizers_of(model))
    if accumulation > 1 and count > 1:
        raise ValueError(
            f"accumulation must be 1 for a model with {count} optimizers. Received: {accumulation}"
        )


def named(optimizer: Any, learning_rate: float | None) -> Any:
    """Returns an optimizer of which only the name was given, at the rate that was given beside it.

    Args:
        optimizer: a name such as "adam", or an optimizer or its configuration, which stay as they are.
        learning_rate: None for Keras's default.
    """
    import keras

    if not isinstance(optimizer, str):
        return optimizer
    result = keras.optimizers.get(optimizer)
    if learning_rate is not None:
        result.learning_rate = learning_rate
    return result


def scaled(optimizer: Any, model: Any) -> Any:
    """Returns the optimizer with loss scaling where a model computes in float16, as Keras compiles it.

    Keras itself goes by the policy of the process that made the model, which the ranks' own is not.
    """
    import keras

    optimizer = keras.optimizers.get(optimizer)
    in_half = any(layer.compute_dtype == "float16" for layer in model.layers)
    is_scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    return keras.optimizers.LossScaleOptimizer(optimizer) if in_half and not is_scaled else optimizer


@dataclass
class PackedOptimizer:
    """An optimizer as plain data.

    Attributes:
        packed: its class and configuration.
        exclusions: of it and of each optimizer that it wraps, the positions among the model's variables of
            those without weight decay, and an expression that finds the names of more, or None.
        built_on: positions among the model's variables of those it was built on; None where it was not built.
        state: values of its variables, in their order.
    """

    packed: Any
    exclusions: list[tuple[list[int], str | None]]
    built_on: list[int] | None
    state: list[np.ndarray]

    @property
    def learning_rate(self) -> float | None:
        """The rate in its configuration; None where that is a schedule, or several optimizers are wrapped."""
        config = self.packed.config["config"]
        rate = config.get("inner_optimizer", {}).get("config", config).get("learning_rate")
        return rate if isinstance(rate, float) else None

    @property
    def uses_moving_average(self) -> bool:
        """Whether it, or one that it wraps, has `use_ema` in its configuration."""
        return _holds(self.packed.config, "use_ema")

    @classmethod
    def of(cls, optimizer: Any, model: Any) -> PackedOptimizer:
        """Packs an optimizer for a copy of the model.

        Raises:
            ValueError: it is built on, or excludes, variables that are not the model's.
        """
        positions = {optimizer._var_key(v): number for number, v in enumerate(model.variables)}
        built_on = [optimizer._var_key(v) for v in optimizer._trainable_variables] if optimizer.built else []
        exclusions = []
        for part in _parts(optimizer):
            pattern = getattr(part, "_exclude_from_weight_decay_pattern", None)
            excluded = getattr(part, "_exclude_from_weight_decay", None) or ()
            exclusions.append((excluded, pattern and pattern.pattern))
        if not positions.keys() >= {*built_on, *(key for excluded, _ in exclusions for key in excluded)}:
            raise ValueError(
                "worker_optimizer must be new, or built on variables of keras_model. Received: "
                f"{type(optimizer).__name__}, built on or excluding variables of another model; "
                "type(optimizer).from_config(optimizer.get_config()) makes a new one"
            )
        return cls(
            pack(optimizer),
            [(sorted(positions[key] for key in excluded), pattern) for excluded, pattern in exclusions],
            [positions[key] for key in built_on] if optimizer.built else None,
            [read(variable) for variable in optimizer.variables],
        )

    def complete(self, optimizer: Any, model: Any, with_state: bool = True) -> None:
        """Gives a new optimizer of the same configuration what its configuration does not hold.

        Args:
            optimizer: an optimizer that was not built.
            model: the model that it is for, a copy of the one that this was packed for.
            with_state: False: it begins anew, at iteration 0.
        """
        variables = model.variables
        for part, (excluded, pattern) in zip(_parts(optimizer), self.exclusions, strict=False):
            if excluded or pattern:
                part.exclude_from_weight_decay(
                    [variables[number] for number in excluded], [pattern] if pattern else None
                )
        if with_state:
            if self.built_on is not None:
                optimizer.build([variables[number] for number in self.built_on])
            for variable, value in zip(optimizer.variables, self.state, strict=True):
                variable.assign(value)

    def differences(self, other: PackedOptimizer) -> Iterator[str]:
        """Yields what another optimizer, packed for the same model, has otherwise."""
        if _nameless(self.packed) != _nameless(other.packed):
            yield "the optimizer's configuration"
        if self.exclusions != other.exclusions:
            yield "the optimizer's exclusions from weight decay"
        if self.built_on != other.built_on or not _equal(self.state, other.state):
            yield "the optimizer's state"


def _innermost(optimizer: Any) -> list[Any]:
    """The optimizer itself, without the loss scaling around it, or those that it is made of."""
    parts = _parts(optimizer)
    return [each for each in parts if not (hasattr(each, "inner_optimizer") or hasattr(each, "optimizers"))]


def _settable(optimizer: Any) -> list[Any]:
    parts = _innermost(optimizer)
    return [each for each in parts if hasattr(each, "learning_rate") and not has_schedule(each)]


def _number(rate: Any) -> float:
    import keras

    return float(keras.ops.convert_to_numpy(rate))


def _parts(optimizer: Any) -> list[Any]:
    """An optimizer and all that it wraps: that with loss scaling, those among which variables are divided."""
    wrapped = [getattr(optimizer, "inner_optimizer", None), *getattr(optimizer, "optimizers", [])]
    return [optimizer, *(part for each in wrapped if each is not None for part in _parts(each))]


def _holds(config: Any, flag: str) -> bool:
    """Whether a flag is set anywhere in a configuration."""
    if isinstance(config, Mapping):
        return config.get(flag) is True or any(_holds(each, flag) for each in config.values())
    return isinstance(config, list | tuple) and any(_holds(each, flag) for each in config)


def _nameless(packed: Any) -> dict[str, Any]:
    """A packed optimizer's configuration without its name, which Keras counts up."""
    return {**packed.config, "config": {**packed.config["config"], "name": None}}


def _equal(values: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    return len(values) == len(others) and all(map(same, values, others))
