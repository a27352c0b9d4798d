"""What makes a trainer a stage of a `pyspark.ml` Pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from pyspark.ml import Estimator
from pyspark.ml.param import Param

from hvdkeras.models import schema as signature

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from hvdkeras.predictors import ModelPredictor


def require_positive(name: str, value: Any, kind: type) -> Any:
    """Returns `value` as `kind` (int or float) if it is a positive, finite number of that kind.

    Raises:
        ValueError: otherwise, with the argument's name and the value.
    """
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not is_number or not np.isfinite(value) or value <= 0 or kind(value) != value:
        noun = "integer" if kind is int else "number"
        raise ValueError(f"{name} must be a positive {noun}. Received: {value!r}")
    return kind(value)


def require_positive_or_none(name: str, value: Any, kind: type) -> Any:
    """As `require_positive`, and None stays None."""
    return None if value is None else require_positive(name, value, kind)


class TunableEstimator(Estimator):
    """A `pyspark.ml` Estimator whose params are its positive numbers.

    `getParam("rho")` is the param of the argument `rho`, for `ParamGridBuilder`:

        ParamGridBuilder().addGrid(trainer.getParam("rho"), [1.0, 5.0]).build()

    The attributes themselves stay plain numbers, for the rules to calculate with.
    """

    @property
    def params(self) -> list[Param]:
        """The arguments that can be tuned, sorted by name."""
        numbers = {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        }
        return [Param(self, name, f"see {type(self).__name__}") for name in sorted(numbers)]

    def getParam(self, paramName: str) -> Param:
        """Returns the param of an argument.

        Raises:
            ValueError: if there is no such argument, or it is not a positive number.
        """
        found = {param.name: param for param in self.params}
        if paramName not in found:
            raise ValueError(f"paramName must be one of {sorted(found)}. Received: {paramName!r}")
        return found[paramName]

    def hasParam(self, paramName: str) -> bool:
        return paramName in {param.name for param in self.params}

    def isSet(self, param: Param | str) -> bool:
        return True

    def isDefined(self, param: Param | str) -> bool:
        return True

    def hasDefault(self, param: Param | str) -> bool:
        return False

    def getOrDefault(self, param: Param | str) -> Any:
        return getattr(self, param if isinstance(param, str) else param.name)

    def copy(self, extra: Mapping[Param, Any] | None = None) -> TunableEstimator:
        """Returns a copy in which params have the values in `extra`; those of other stages don't count."""
        # Not copy.copy, which would turn the model into bytes as pickling does.
        result = object.__new__(type(self))
        result.__dict__.update(self.__dict__)
        for param, value in (extra or {}).items():
            if param.parent == self.uid:
                kind = type(getattr(self, self.getParam(param.name).name))
                setattr(result, param.name, require_positive(param.name, value, kind))
                # As if the constructor had been given it.
                result._recipe = None
                result._has_rate = result._has_rate or param.name == "learning_rate"
        return result

    def _fit(self, dataset: DataFrame) -> ModelPredictor:
        from hvdkeras.predictors import ModelPredictor

        if self.decode:
            raise ValueError(
                "decode must be left out for fit, whose fitted model reads numbers; train takes it. "
                f"Received: functions for {sorted(self.decode)}"
            )
        trained = self.train(dataset)
        return ModelPredictor(
            trained,
            features_col=signature.input_columns(self.keras_model, self.features_col),
            output_col=self.output_col,
            custom_objects=self.custom_objects,
        )
