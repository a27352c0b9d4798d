"""A rank's rows: those that it trains on, and its share of those that all ranks evaluate on."""

from __future__ import annotations

from hvdkeras.callbacks.feed import Feed
from hvdkeras.data.decoding import DecodedRows
from hvdkeras.data.rows import Rows
from hvdkeras.rank.place import Place
from hvdkeras.spec import DataSpec, EnsembleSpec


class RankData:
    """The rows of one rank.

    Args:
        data: the rows of the training.
        place: this rank.
        ensemble: the ensemble that is trained; None for one model.

    Attributes:
        training: the rows that this rank trains on.
    """

    def __init__(self, data: DataSpec, place: Place, ensemble: EnsembleSpec | None) -> None:
        self._data, self._place = data, place
        chosen, self._held_out = None, None
        if data.split is not None:
            chosen, self._held_out = data.split.indices()
        part, parts, seed = place.comm.rank, place.comm.size, data.seed
        if ensemble is not None:
            part, parts = (place.member, ensemble.members) if ensemble.partition else (0, 1)
            # On all rows, another seed gives each member an order of its own.
            seed += place.member
        rows = Rows(data.shards, part, parts, data.batch_size, seed, data.shuffle, chosen)
        self.training = self._decoded(rows)

    def validation_feed(self, alone: bool = False) -> Feed | None:
        """Returns this rank's share of the rows to evaluate on; None where it has none.

        Args:
            alone: whether rank 0 has all of them.
        """
        data, comm = self._data, self._place.comm
        if not data.is_evaluated:
            return None
        shards = data.validation or data.shards
        total = shards.rows if self._held_out is None else len(self._held_out)
        sharing = 1 if alone else min(comm.size, total)
        if comm.rank >= sharing:
            return None
        rows = Rows(shards, comm.rank, sharing, data.batch_size, data.seed, False, self._held_out)
        return Feed(self._decoded(rows), data.batch)

    def _decoded(self, rows: Rows) -> Rows | DecodedRows:
        decode = self._data.decode
        return DecodedRows(rows, decode, self._place.threads) if decode else rows
