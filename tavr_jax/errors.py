"""The one error a user can cause."""


class InputError(Exception):
    """Bad input. The message is one line: what (file or field), why, and the remedy.

    `launch` prints it and exits 2; everywhere else it is raised before anything is
    written.
    """
