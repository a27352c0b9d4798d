"""The center variable: the vector of weights that all ranks share, and the only place where they exchange it.

- `replicated.ReplicatedCenter`: every rank holds the center; all ranks exchange together, by collectives.
- `window.WindowCenter`: the center is in one-sided MPI windows; each rank exchanges at its own pace.
- `tables.TableCenter`: as that; of large embeddings only rows that have changed are exchanged.
- `local.LocalCenter`: a center in one process, without MPI, to try an algorithm.

All have the verbs `pull`, `push` and `exchange`, the method `contents`, and take the same rules::

    rule(local, center, *slots, *vectors) -> (kept, push, *slot_pushes)

A rule is a pure, elementwise function of float32 vectors of one length. `kept` is the rank's new local
vector. `push` is added to the center, each slot's push to that slot. Slots are vectors beside the center; a
ReplicatedCenter has none. A center calls the rule on one block of the vectors after the other, so that the
rule's temporaries stay in the cache.

This module imports nothing: LocalCenter must work where MPI is not installed.
"""
