"""The one exception that is meant for people rather than for a debugger."""

from __future__ import annotations


class UserError(Exception):
    """Something a person can put right: one line that says what, where, and what to do.

    Command lines print the message to standard error and leave with exit code 2, without a stack
    trace; everything else that is raised is a bug and keeps its trace.
    """
