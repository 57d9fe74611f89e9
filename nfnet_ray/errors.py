"""The one exception that is meant for people rather than for a debugger."""

from __future__ import annotations

from nfnet_ray.printable import printable


class UserError(Exception):
    """Something a person can put right: one line that says what, where, and what to do.

    Command lines print the message to standard error and leave with exit code 2, without a stack
    trace; everything else that is raised is a bug and keeps its trace.

    Names in the message may hold anything: the text of the error is one printable line all the same.
    """

    others_wait = False
    """Whether one of several workers has raised it, and the others wait for that one in an exchange."""

    def __str__(self) -> str:
        return printable(super().__str__())


class StopsStudyError(UserError):
    """Something that no trial of a study can do without. All of them stop, to be resumed once it is put right.

    The message names it and ends in what to do about it.
    """


class DataChangedError(StopsStudyError):
    """The data set is not, or not any more, the one that the study or training began with."""


class StorageError(StopsStudyError):
    """The folder of results is full, or can no longer be written. What was saved before is intact."""
