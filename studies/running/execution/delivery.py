"""Delivering the rest of a study to MLflow when it ends."""

from __future__ import annotations

from rich.console import Console

from nfnet_ray.command_line.terminal import say, say_whole
from nfnet_ray.printable import display_path, interpreter, shell_command
from nfnet_ray.tracking.delivery.sink import MLflowSink
from nfnet_ray.tracking.destination.not_recorded import NotRecorded
from studies.running.execution.console_output import compare_command
from studies.running.execution.study_run import StudyRun

# After the last trial: on a busy machine importing mlflow and creating its database alone took more than 20 s. If no
# server answers, the second limit applies.
DEADLINE_SECONDS, UNANSWERED_SECONDS = 180.0, 20.0
# After SIGTERM, Kubernetes and Slurm kill the process when 30 s have passed. Nothing is lost, as the journal has it.
DEADLINE_SECONDS_IF_STOPPED = 10.0


def deliver(
    run: StudyRun, sink: MLflowSink | NotRecorded, console: Console, *, is_urgent: bool = False
) -> bool:
    """Delivers the rest to MLflow, and says what could not be delivered; returns whether MLflow has everything.

    ``is_urgent`` says that a study with unfinished trials was stopped by somebody who may not wait long.
    """
    if isinstance(sink, NotRecorded):
        replay = [interpreter(), "-m", "nfnet_ray.tracking", "replay", display_path(run.directory)]
        say_whole(console, f"MLflow:  not recorded; to record it: {shell_command(replay)}")
        return True
    sink.start()
    sink.attach_study()
    if is_urgent and run.progress.unfinished:
        sink.close(DEADLINE_SECONDS_IF_STOPPED)
    else:
        sink.close(DEADLINE_SECONDS, UNANSWERED_SECONDS)
    say_whole(console, f"MLflow:  {compare_command(run)}")
    words = sink.last_words(run.command)
    for sentences, command in words:
        say(console, sentences)
        if command:
            say_whole(console, f"  {command}")
    if not words and any(trial.outcome == "finished" for trial in run.progress.members):
        publish = [interpreter(), "-m", "studies", "publish", display_path(run.directory)]
        say_whole(console, f"Publish: {shell_command(publish)}")
    return not words
