"""Bounded waits, small collectives, and mailboxes between ranks. It knows MPI and NumPy only."""
