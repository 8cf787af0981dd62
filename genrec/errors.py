"""The one error that means: the input is wrong, not the program."""


class InputError(ValueError):
    """Bad input, refused before any work starts.

    The message says what came, what was wanted, and the remedy. The command line prints it without a
    traceback and exits with code 2.
    """
