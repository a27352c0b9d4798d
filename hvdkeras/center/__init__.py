"""The center variable, carried by MPI: the one place that exchanges weights between ranks.

`ReplicatedCenter` goes in step, by collectives. `WindowCenter` lives in one-sided windows and lets each rank
go at its own pace. Both know MPI and NumPy only, both have the verbs `pull`, `push`, `exchange` and `free`,
and both take the same rules::

    rule(local, center, *vectors) -> (new_local, push)

A rule is a pure function, elementwise, of float32 vectors of one length; the center becomes center + push.
It is called on one block of the vectors after the other, so that its temporaries stay in the cache.
"""

from hvdkeras.center.replicated import ReplicatedCenter, mean
from hvdkeras.center.window import WindowCenter

__all__ = ["ReplicatedCenter", "WindowCenter", "mean"]
