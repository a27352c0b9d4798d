"""What happened in a training: records, picture, timeline, progress display."""

from hvdkeras.history.history import History
from hvdkeras.history.records import Evaluation, RankHistory

__all__ = ["Evaluation", "History", "RankHistory"]
