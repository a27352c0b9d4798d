"""Bounded waits, small collectives, and a mailbox between ranks."""
