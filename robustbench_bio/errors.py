"""The one exception that is the user's mistake."""


class UserError(Exception):
    """A mistake that the user can mend: says what was expected, what came, and the remedy, in one line.

    The command line prints it without a traceback and exits with status 2.
    """
