"""The one error a user can cause, and the one that goes away."""


class InputError(Exception):
    """Bad input. The message is one line: what (file or field), why, and the remedy.

    `launch` prints it and exits 2; everywhere else it is raised before anything is
    written.
    """


class PassingError(Exception):
    """Another machine does not answer; the same may work later. One line as well.

    `launch` prints it and exits 1: what started the command may start it again, which
    after an InputError nothing does (launch/pod_jobset.py).
    """
