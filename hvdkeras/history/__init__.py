"""What happened in a training: records, picture, timeline, progress display."""

from hvdkeras.history.records import History, Look, RankHistory

__all__ = ["History", "Look", "RankHistory"]
