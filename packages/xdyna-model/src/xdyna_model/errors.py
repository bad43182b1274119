"""The one exception a user is meant to read."""


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: what is wrong, and what to do about it."""
