"""Rounds in which all ranks together evaluate the center, save a checkpoint, or stop."""
