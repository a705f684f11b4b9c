"""What goes wrong through no fault of the program: the user's mistake, and a training that cannot go on."""


class UserError(Exception):
    """A mistake that the user can mend: says what was expected, what came, and the remedy, in one line.

    The command line prints it without a traceback and exits with status 2.
    """


class DivergedError(UserError):
    """A training whose loss or weights are no longer finite; a search gives such a candidate the worst scores."""
