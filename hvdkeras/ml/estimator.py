"""What makes a trainer a stage of a `pyspark.ml` Pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyspark.ml import Estimator
from pyspark.ml.param import Param


class TunableEstimator(Estimator):
    """A `pyspark.ml` Estimator whose params are its positive numbers.

    `getParam("rho")` is the param of the argument `rho`, for `ParamGridBuilder`:

        ParamGridBuilder().addGrid(trainer.getParam("rho"), [1.0, 5.0]).build()

    The attributes themselves are plain numbers, for the rules to calculate with.
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
        result = object.__new__(type(self))
        result.__dict__.update(self.__dict__)
        for param, value in (extra or {}).items():
            if param.parent == self.uid:
                setattr(result, self.getParam(param.name).name, value)
        return result
