"""A training by many workers, in one process and in simulated time, by the algorithms' own classes.

- `training.simulate` is what the user calls; `result.Simulation` is what it returns.
- `problems` and `dense` compute the gradients of all workers, `replicas` holds their weights.
- `centers` has the verbs of a center; `runs` says when which worker exchanges.
- `times` says how long everything takes; `measuring` measures it.
"""

from hvdkeras.simulation.problems import Problem, Quadratic
from hvdkeras.simulation.result import Simulation
from hvdkeras.simulation.times import Failures, Times
from hvdkeras.simulation.training import simulate

__all__ = ["Failures", "Problem", "Quadratic", "Simulation", "Times", "simulate"]
