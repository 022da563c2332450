"""Errors that are harder to handle than most."""


class UnreadableError(Exception):
    """Raises where it is to say what happened."""

    def __str__(self):
        raise RuntimeError("no text")
