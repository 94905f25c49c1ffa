"""The one exception that means "the user can mend this"; the command line exits with 2 on it."""

from __future__ import annotations


class UserError(ValueError):
    """Report a mistake in what the user gave: what was given, what is allowed, how to mend it.

    The text is one line; the command line prints it without a traceback and exits with status 2.
    """
