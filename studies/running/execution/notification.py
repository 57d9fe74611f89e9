"""Telling the study's webhook, if it has one, how the study ended."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from nfnet_ray.command_line.terminal import say
from nfnet_ray.study.live.display import best_so_far
from nfnet_ray.study.live.webhook import Happening, notify, outcome_text, webhook_event
from studies.running.execution.console_output import answers
from studies.running.execution.study_run import StudyRun


def notify_of_end(run: StudyRun, sessions_before: int, console: Console) -> None:
    """Tells the webhook that the study has ended in good order, with its answer or the cap that ended it.

    Only a driver that has begun does so, which then adds a session to the ``sessions_before``. Times cannot tell
    whether it has, as the driver before it may have run on a machine whose clock is ahead.
    """
    ended = run.progress.ended
    if run.notify_url is None or ended is None or len(run.progress.sessions) <= sessions_before:
        return
    if reason := ended.get("reason"):
        best = best_so_far(run.study, run.progress)
        _notify(run, "cap", [". ".join(filter(None, [f"It ended early: {reason}", best]))], console)
    else:
        _notify(run, ended["state"], answers(run), console)


def notify_of_failure(run: StudyRun, why: str, console: Console) -> None:
    """Tells the webhook that the study has stopped because of an error."""
    _notify(run, "failed", [why], console)


def _notify(run: StudyRun, event: Happening, sentences: Sequence[str], console: Console) -> None:
    if run.notify_url is None:
        return
    text = outcome_text(event, run.study.name, run.progress, sentences)
    told = webhook_event(event, run.study.name, run.progress, run.directory, text)
    if trouble := notify(run.notify_url, told):
        say(console, f"The webhook {trouble}.")
