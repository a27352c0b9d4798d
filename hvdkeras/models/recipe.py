"""A Keras model with what it is compiled with, in a form that travels to ranks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import copy as shallow
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np

from hvdkeras.models.compiled import check_left_out, check_metrics, compiles_itself
from hvdkeras.models.large import Beside, Weight, beside_the_file
from hvdkeras.models.optimizers import PackedOptimizer, named, optimizers_of, scaled
from hvdkeras.models.serialization import (
    architecture,
    model_from_bytes,
    own_parts,
    pack,
    unpack,
    with_functions,
)
from hvdkeras.models.signature import Nested, sign, signature_of
from hvdkeras.models.values import differing, is_seed, read, same, set_seed
from hvdkeras.models.windows import end_with_the_data
from hvdkeras.naming import listed

logger = logging.getLogger("hvdkeras")


@dataclass
class Recipe:
    """All that a process needs to make a compiled copy of a Keras model. It pickles, by cloudpickle.

    Values travel as values: Keras's file of a model leaves some out (LoRA's matrices, which of a layer's
    weights train), and its configuration of an optimizer, too (exclusions, moments, the iteration).

    Attributes:
        content: the model as a `.keras` file, without its large weights.
        large: the large weights by their numbers in that file; see `hvdkeras.models.large`.
        objects: classes and functions by name that the model needs.
        trainable: whether each of the model's variables trains, in their order.
        values: by position among the model's variables, the values that the file does not bring back.
        seeds: by position, the states of random layers, shape `(2,)`: the seed, and how often it was used.
        optimizer: the optimizer; None where the model's own `compile_from_config` makes it.
        arguments: the other arguments of `compile`, packed.
        others: the optimizers that the model has beside its own; what their configurations leave out of them.
        own_config: what a model with a `compile` of its own gives its `compile_from_config`; None for others.
        signature: the inputs of a model that was built from data; None for one with inputs of its own.
    """

    content: bytes
    large: dict[int, Weight]
    objects: dict[str, Any]
    trainable: list[bool]
    values: dict[int, np.ndarray]
    seeds: dict[int, np.ndarray]
    optimizer: PackedOptimizer | None
    arguments: dict[str, Any]
    others: list[PackedOptimizer]
    own_config: dict[str, Any] | None = None
    signature: Nested | None = None

    @classmethod
    def with_copy(
        cls,
        model: Any,
        optimizer: Any,
        learning_rate: float | None = None,
        custom_objects: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> tuple[Recipe, Any]:
        """Packs a model, and makes sure that a copy of it is the same.

        Args:
            model: a built Keras model. It is not changed.
            optimizer: a Keras optimizer, built or not, its name or its configuration. The model's own is
                taken as it is; another gets loss scaling where the model computes in float16.
            learning_rate: the rate of an optimizer that is given by its name. Default: Keras's.
            custom_objects: classes and functions by name that are not registered with Keras.
            **arguments: more of `keras.Model.compile`: `loss`, `metrics`, `weighted_metrics`, `loss_weights`,
                `jit_compile`, `run_eagerly`. Values that are None are left to Keras.

        Returns:
            The recipe, and the copy, which is what its `build` returns.

        Raises:
            ValueError: something of the model, the optimizer or the arguments can't be rebuilt; the message
                names it.
        """
        import keras

        for name in ("metrics", "weighted_metrics"):
            check_metrics(arguments.get(name))
        given = {name: value for name, value in arguments.items() if value is not None}
        # Those registered with Keras go along, because other processes don't know of them.
        objects = {**keras.saving.get_custom_objects(), **(custom_objects or {})}
        try:
            if optimizer is not getattr(model, "optimizer", None):
                optimizer = scaled(named(optimizer, learning_rate), model)
            recipe = cls(b"", {}, {**own_parts(model), **objects}, [], {}, {}, None, pack(given), [])
            recipe._pack_optimizers(model, optimizer, given)
            signed = signature_of(model)
            recipe.signature = None if signed is None else signed.described
            copy = recipe._pack_model(model)
            recipe._take(model, copy)
            recipe._give(copy, rank=None)
            recipe._compile(copy, 1, with_state=True)
        except Exception as error:
            # Keras wraps the reason in the configuration of the whole model, which can fill a screen.
            reason = str(error).split("Exception encountered: ")[-1].split(" Full object config: ")[0]
            raise ValueError(
                "keras_model, worker_optimizer, loss and metrics must survive saving and loading "
                "(custom_objects names what Keras does not know). Received: "
                f"{type(model).__name__} {model.name!r}, {type(error).__name__}: {reason}"
            ) from error
        recipe.compare(model, copy)
        return recipe, copy

    @property
    def uses_moving_average(self) -> bool:
        """Whether an optimizer keeps a moving average of the weights, Keras's `use_ema`."""
        own = [] if self.optimizer is None else [self.optimizer]
        return any(each.uses_moving_average for each in [*own, *self.others])

    def build(self, steps_per_execution: int = 1, rank: int | None = None, fresh: bool = False) -> Any:
        """Returns a compiled copy of the model.

        Args:
            steps_per_execution: as in `keras.Model.compile`.
            rank: where the copy trains; its random layers then draw other numbers than those of other ranks,
                rank 0 those that the model itself would draw. Layers without a seed of their own take one
                from Keras's, `keras.utils.set_random_seed`. Default: the random states are the model's, too.
            fresh: draw the weights that train anew, by their initializers; the optimizer begins anew, too.
        """
        model = self._loaded()
        self._give(model, rank, fresh)
        return self._compile(model, steps_per_execution, with_state=not fresh)

    def compile(self, model: Any) -> Any:
        """Compiles a model that has the same outputs, but is no copy, in the same way, and returns it."""
        return self._compile(model, 1, with_state=None)

    def compare(self, model: Any, copy: Any) -> None:
        """Raises ValueError, naming what differs, if a copy that was built here is not the model.

        Args:
            model: what was packed.
            copy: what `build` returned.
        """
        differences = list(differing(model, copy))
        wanted = [*([self.optimizer] if self.optimizer else []), *self.others]
        # A class may make further optimizers when it is compiled, which the model itself was not.
        for packed, optimizer in zip(wanted, optimizers_of(copy)[: len(wanted)], strict=True):
            differences += packed.differences(PackedOptimizer.of(optimizer, copy))
        if differences:
            raise ValueError(
                "keras_model and worker_optimizer must be the same after saving and loading. Received: "
                f"{type(model).__name__} {model.name!r}, of which these differ: "
                + listed(differences, longest=200)
            )

    def lent(self) -> Recipe:
        """Returns the same recipe to be released by another; the arrays are not copied."""
        other = shallow(self)
        other.large, other.values = dict(self.large), dict(self.values)
        return other

    def release(self) -> None:
        """Frees the weights beside the file. Nothing can be built any more, but the structure is known."""
        self.large.clear()
        self.values.clear()

    def _pack_model(self, model: Any) -> Any:
        """Notes the model's file and its large weights; returns what is loaded from them."""
        beside = Beside()
        with beside_the_file(beside):
            self.content, functions = with_functions(model)
        self.objects = {**functions, **self.objects}
        self.large = beside.weights
        try:
            copy, loaded = self._loaded_with()
        except Exception as error:
            if not self.large:
                raise
            # A layer may do with what it loads what can be done with arrays only.
            logger.info(
                "all weights travel in the model's file, because it can't be loaded with them beside it: "
                "%s: %s",
                type(error).__name__,
                error,
            )
            self.content, _ = with_functions(model)
            self.large = {}
            return self._loaded()
        # The states of optimizers are saved, and not loaded.
        self.large = {number: value for number, value in self.large.items() if number in loaded}
        return copy

    def _pack_optimizers(self, model: Any, optimizer: Any, given: Mapping[str, Any]) -> None:
        import keras

        own = getattr(model, "optimizer", None)
        if compiles_itself(model):
            check_left_out(model, {"worker_optimizer": optimizer, **given})
            self.own_config = keras.saving.serialize_keras_object(model.get_compile_config())
            others = optimizers_of(model)
        else:
            self.optimizer = PackedOptimizer.of(optimizer, model)
            others = [each for each in optimizers_of(model) if each is not own and each is not optimizer]
        self.others = [PackedOptimizer.of(each, model) for each in others]

    def _compile(self, model: Any, steps_per_execution: int, with_state: bool | None) -> Any:
        """Compiles a model. `with_state`: whether a copy's optimizers go on; None for what is no copy."""
        import keras

        with keras.saving.custom_object_scope(self.objects):
            if self.own_config is not None:
                model.compile_from_config(deepcopy(self.own_config))
                model.steps_per_execution = steps_per_execution
            else:
                optimizer = unpack(self.optimizer.packed, self.objects)
                if with_state is not None:
                    self.optimizer.complete(optimizer, model, with_state)
                # The optimizer has the scaling that it needs, whatever the policy of this process.
                own = type(model).compile is not keras.Model.compile
                model.compile(
                    optimizer=optimizer,
                    steps_per_execution=steps_per_execution,
                    **({} if own else {"auto_scale_loss": False}),
                    **unpack(self.arguments, self.objects),
                )
        end_with_the_data(model)
        if with_state and self.others:
            others = optimizers_of(model)[0 if self.optimizer is None else 1 :]
            for packed, other in zip(self.others, others, strict=True):
                packed.complete(other, model)
        return model

    def _loaded(self) -> Any:
        """The model as Keras's file and the large weights beside it hold it."""
        return self._loaded_with()[0]

    def _loaded_with(self) -> tuple[Any, set[int]]:
        """The model, see `_loaded`, and the numbers of the large weights that were loaded."""
        import keras

        beside = Beside(self.large)
        with keras.saving.custom_object_scope(self.objects):
            # The model is the user's own: it may hold code.
            with beside_the_file(beside):
                model = model_from_bytes(self.content, self.objects, safe_mode=False)
            if self.signature is not None:
                sign(model, self.signature)
        return model, beside.loaded

    def _take(self, model: Any, loaded: Any) -> None:
        """Notes of the model what its file does not bring back."""
        if len(loaded.variables) != len(model.variables):
            differing = sorted({v.path for v in model.variables} ^ {v.path for v in loaded.variables})
            raise ValueError(f"the model and its copy have other variables: {listed(differing)}")
        self.trainable = [bool(variable.trainable) for variable in model.variables]
        for number, (variable, copied) in enumerate(zip(model.variables, loaded.variables, strict=True)):
            if is_seed(variable):
                self.seeds[number] = read(variable)
            elif variable.shape == copied.shape and not same(read(variable), read(copied)):
                self.values[number] = read(variable)

    def _give(self, loaded: Any, rank: int | None, fresh: bool = False) -> None:
        """Gives a loaded model what its file does not bring back, see `build`."""
        import keras

        variables = loaded.variables
        for variable, trainable in zip(variables, self.trainable, strict=True):
            # Layers have set most of the flags already.
            if bool(variable.trainable) != trainable:
                variable.trainable = trainable
        for number, value in self.values.items():
            variables[number].assign(value)
        if fresh:
            trained = {id(variable) for variable in loaded.trainable_variables}
            with keras.saving.custom_object_scope(self.objects):
                drawn = keras.saving.deserialize_keras_object(architecture(self.content), safe_mode=False)
            for number, variable in enumerate(drawn.variables):
                if id(variables[number]) in trained or number in self.seeds:
                    variables[number].assign(variable)
        for number, state in self.seeds.items():
            set_seed(variables[number], state, rank)
