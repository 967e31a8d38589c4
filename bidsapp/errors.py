"""Errors that a user can cause. Each is one sentence: which file, what is wrong, what to do."""


class UserError(Exception):
    """The run cannot start as it was asked for."""

    exit_code = 2


class NothingToDo(UserError):
    """The request is understood, but no scan matches it."""

    exit_code = 3


class ScanError(UserError):
    """One scan cannot be processed; the others go on."""

    exit_code = 1
