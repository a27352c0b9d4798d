"""Rounds in which all ranks together evaluate the center, save a checkpoint, or stop.

Each rank is a participant, rank 0 the coordinator, too. A participant reports to the coordinator where its
training is. When all ranks have reported the same occasion, the coordinator opens a round: every rank
evaluates the center on its part of the validation rows, or writes its part of a checkpoint, and contributes
the result. The coordinator sums the contributions and closes the round with a decision for all.

Asynchronous ranks do not wait for a round: they check their mailbox at the end of each communication window.
Synchronous ranks report at the same point of their training, and wait for the decision.
"""
