"""The errors that a user can do something about; every other one is a bug of ours."""


class DataError(ValueError):
    """What a user's file got wrong: what was found, where, what was expected, what to do."""


class OptionError(DataError):
    """A flag or an argument that is out of range or not one of the options."""
