"""The error that a user can do something about."""


class DataError(ValueError):
    """What a user's file got wrong: what was found, where, what was expected, what to do."""
