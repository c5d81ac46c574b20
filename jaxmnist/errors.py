"""The errors a user can cause. Each message is one line: what is wrong, where, what to do."""


class JaxmnistError(Exception):
    """Base of the library's own errors; the scripts print its message and exit with 1."""


class DataError(JaxmnistError):
    """A file or array is there but damaged, incomplete or not what it should be."""


class DataNotFoundError(DataError):
    """The data is in none of the places where it is looked for, and cannot be downloaded."""


class NonFiniteLossError(JaxmnistError):
    """The training loss became infinite or not-a-number."""


class CheckpointError(JaxmnistError):
    """A checkpoint cannot be written, read or used, or another process is at work on them."""


class UsageError(JaxmnistError):
    """What was asked for cannot be done as it was asked; the scripts exit with 2."""
