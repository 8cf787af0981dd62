"""The error for wrong input, as opposed to a fault of the program."""


class InputError(ValueError):
    """Wrong input, where possible detected before any work starts.

    The message says what the program got, what it wanted, and the remedy. The command line prints it without a
    traceback and exits with code 2.
    """
