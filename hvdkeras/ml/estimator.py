"""What makes a trainer a stage of a `pyspark.ml` Pipeline: its arguments are Params."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any

from pyspark.ml import Estimator
from pyspark.ml.param import Param

from hvdkeras.arguments import declared_arguments, descriptions, unknown_name
from hvdkeras.ml.saved_estimator import SavedEstimator

# pyspark reads a param as the attribute of the param's name, and the attribute `rho` is a number.
ENDING = "_param"

# The shared params of Spark's own estimators, and the arguments that they name.
SPARK_NAMES = {
    "featuresCol": "features_col",
    "labelCol": "label_col",
    "predictionCol": "output_col",
    "weightCol": "sample_weight_col",
    "probabilityCol": "probability_col",
    "rawPredictionCol": "raw_prediction_col",
}


class TunableEstimator(SavedEstimator, Estimator):
    """A `pyspark.ml` Estimator whose params are its declared arguments.

    An argument's attribute, such as `rho`, is its value, for the rules to calculate with; its param is
    `rho_param`. Spark's shared params of the same meaning are there, too: `featuresCol`, `labelCol`,
    `weightCol`, `probabilityCol`, `rawPredictionCol`, and `predictionCol`, the column that evaluators read:
    `prediction_col` where a classifier has one, else `output_col`.

        ParamGridBuilder().addGrid(trainer.rho_param, [1.0, 5.0]).build()
        trainer.set(trainer.rho_param, 2.0)    # as trainer.rho = 2.0
        trainer.setParams(rho=2.0, num_epoch=5)
        trainer.getRho(), trainer.explainParam("rho")

    A value that is set passes the checks of the constructor.
    """

    @property
    def params(self) -> list[Param]:
        """The params, sorted by name."""
        return [self._param(name) for name in sorted(self._param_names())]

    def getParam(self, paramName: str) -> Param:
        """Returns the param of an argument, by the argument's name or the param's.

        Raises:
            ValueError: there is no such argument; the message has the nearest names.
        """
        if not self.hasParam(paramName):
            known = declared_arguments(type(self))
            raise ValueError(unknown_name(f"{type(self).__name__} has no param", paramName, known))
        return self._param(self._argument(paramName) + ENDING if paramName not in SPARK_NAMES else paramName)

    def hasParam(self, paramName: str) -> bool:
        return self._argument(paramName) in declared_arguments(type(self))

    def setParams(self, **arguments: Any) -> TunableEstimator:
        """Sets arguments, by their own names or Spark's, and returns the trainer."""
        return self._set(**arguments)

    def copy(self, extra: Mapping[Param, Any] | None = None) -> TunableEstimator:
        """Returns a copy in which params have the values in `extra`; those of other stages don't count.

        Raises:
            ValueError: a value does not fit.
        """
        result = object.__new__(type(self))
        result.__dict__.update(self.__dict__)
        for param, value in (extra or {}).items():
            if param.parent == self.uid:
                result.set(param, value)
        return result

    def _set(self, **arguments: Any) -> TunableEstimator:
        for name, value in arguments.items():
            self.set(self.getParam(name), value)
        return self

    def _resetUid(self, newUid: str) -> TunableEstimator:
        self.uid = str(newUid)
        return self

    @property
    def _paramMap(self) -> ArgumentsByParam:
        """The params that were given or set, as pyspark's own methods read and change them."""
        return ArgumentsByParam(self)

    @_paramMap.setter
    def _paramMap(self, value: dict[Param, Any]) -> None:
        # The constructor of pyspark's Params sets an empty one; the arguments themselves are the map.
        assert not value

    @property
    def _defaultParamMap(self) -> dict[Param, Any]:
        declared = declared_arguments(type(self))
        return {self._param(name): declared[self._argument(name)].default for name in self._param_names()}

    @_defaultParamMap.setter
    def _defaultParamMap(self, value: dict[Param, Any]) -> None:
        assert not value

    def _param(self, name: str) -> Param:
        argument = self._argument(name)
        check = declared_arguments(type(self))[argument].check
        description = descriptions(type(self)).get(argument, argument)
        if name in SPARK_NAMES:
            description = f"Spark's name of {argument}: {description}"
        return Param(self, name, description, partial(check, argument) if check else None)

    def _argument(self, name: str) -> str:
        """The argument that the name of a param means, or of an argument."""
        if name == "predictionCol" and getattr(self, "prediction_col", None) is not None:
            return "prediction_col"
        return SPARK_NAMES.get(name, name.removesuffix(ENDING))

    def _param_names(self) -> list[str]:
        declared = declared_arguments(type(self))
        return [
            *(name + ENDING for name in declared),
            *(name for name, argument in SPARK_NAMES.items() if argument in declared),
        ]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._param_names()]

    def __getattr__(self, name: str) -> Any:
        # `rho_param` and `featuresCol`, `getRho()` and `setRho(2.0)`, as Spark's own estimators have them.
        if name[:3] in ("get", "set") and name[3:4].isupper():
            param = self._named(name[3:])
            if param is not None and name.startswith("get"):
                return partial(self.getOrDefault, param)
            if param is not None:
                return lambda value: self._set(**{param.name: value})
        if (name in SPARK_NAMES or name.endswith(ENDING)) and self.hasParam(name):
            return self._param(name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _named(self, camel: str) -> Param | None:
        """The param of a name in Spark's form, with a capital for each word; None where there is none."""
        snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in camel)[1:]
        own = camel[0].lower() + camel[1:]
        found = next((each for each in (own, snake) if self.hasParam(each)), None)
        return self.getParam(found) if found else None


class ArgumentsByParam(MutableMapping):
    """The arguments of an estimator that were given, by their params.

    pyspark's `set`, `clear`, `isSet`, `extractParamMap`, `explainParams` work on this map, so that they and
    the attributes can't disagree.
    """

    def __init__(self, estimator: TunableEstimator) -> None:
        self._estimator = estimator

    def __getitem__(self, param: Param) -> Any:
        if param not in self:
            raise KeyError(param)
        return getattr(self._estimator, self._estimator._argument(param.name))

    def __setitem__(self, param: Param, value: Any) -> None:
        setattr(self._estimator, self._estimator._argument(param.name), value)

    def __delitem__(self, param: Param) -> None:
        self._estimator.reset(self._estimator._argument(param.name))

    def __contains__(self, param: object) -> bool:
        if not isinstance(param, Param) or not self._estimator.hasParam(param.name):
            return False
        return self._estimator.is_given(self._estimator._argument(param.name))

    def __iter__(self) -> Iterator[Param]:
        params = map(self._estimator._param, self._estimator._param_names())
        return (param for param in params if param in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)
