"""The output of a study before its trials run, and after them."""

from __future__ import annotations

from rich.console import Console

from dashboards.report import REPORT_FILE, renewed_report
from nfnet_ray.cluster.connection.gpu_sharing import sharing_sentence
from nfnet_ray.command_line.terminal import say, say_whole
from nfnet_ray.data.batching import images_of_share
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.printable import display_path, interpreter, shell_command
from nfnet_ray.study.cost.spending import Caps, PaidTime, ReachedCap, accelerator_word
from nfnet_ray.study.live.display import best_so_far, reported_epochs, trial_table
from nfnet_ray.wording import clock_time, count
from studies.running.execution.study_run import StudyRun
from studies.running.kept_files import keep_trials
from studies.running.planning.plan_text import expected_cost
from studies.running.runner import Places

# Accelerators are idle for a few seconds while Ray starts, which is a large share of a short study and no concern.
LEAST_IDLE_SHARE, LEAST_IDLE_SECONDS = 0.1, 60.0


def say_greeting(run: StudyRun, trials: int, console: Console) -> None:
    """Says what is about to run, with the number of trials, and where to watch it."""
    say(console, run.study.question, title=run.study.name)
    extent = run.runner.extent(run.study, trials, run.data)
    say(console, f"{extent} {_on_images(run.data, run.study.recipe.data.train_share)}.")
    for sentence in run.extended.sentences() if run.extended else ():
        say(console, sentence)
    if not run.study.fields:  # a training, which has no --plan
        from studies.running.planning.training_remarks import training_remarks  # it imports torch

        for sentence in training_remarks(run.study, run.data):
            say(console, sentence)
    say_whole(console, f"Report:  {display_path(run.directory / REPORT_FILE)}")
    if run.is_recorded:
        say_whole(console, f"MLflow:  {compare_command(run)}")
    what = "Both" if run.is_recorded else "It"
    say(console, f"{what} can be opened {'now' if run.has_epochs else 'once the first epoch is done'}.")


def _on_images(data: DatasetSummary, train_share: float) -> str:
    """``on 1,437 training images (10 classes), validated on 360``."""
    images = count(data.train_images, "training image")
    if train_share < 1:
        images = f"{images_of_share(data.train_images, train_share):,} of {images}"
    return f"on {images} ({count(len(data.class_names), 'class')}), validated on {data.validation_images:,}"


def say_places(run: StudyRun, places: Places, console: Console) -> None:
    """Says on which machines the study runs."""
    say(console, f"Ray: {places.resources.description}; {run.runner.shape(places.worker, places.number)}.")


def say_sharing_and_cost(run: StudyRun, places: Places, console: Console) -> None:
    """Says how workers share GPUs, at which caps the study will end, and what it is expected to cost."""
    worker = places.worker
    for sentence in (
        sharing_sentence(worker, places.mps),
        run.caps.sentence(accelerator_word(worker.gpus)),
    ):
        if sentence:
            say(console, sentence)
    if run.caps.price_per_hour is not None and run.progress.started is None:
        say(console, expected_cost(run.study, run.data, run.directory.parent, places, run.caps))


def say_nothing_to_train(run: StudyRun, console: Console) -> None:
    """Says that all trials have ended, or that the extension adds none."""
    if run.extended is None:
        say(console, f"All trials of {run.study.name} have ended; there is nothing to train.")
        return
    for sentence in run.extended.sentences():
        say(console, sentence)
    say(console, "There is nothing to train.")


def say_result(run: StudyRun, console: Console) -> bool:
    """Prints the table, the answer and where the report is; returns whether the report could be written."""
    console.print(trial_table(run.study, run.progress, reported_epochs, console))
    console.print()
    for sentence in answers(run):
        say(console, sentence)
    for sentence, command in _health(run):
        say(console, sentence)
        if command:
            say_whole(console, f"  {command}")
    if run.progress.unfinished and (best := best_so_far(run.study, run.progress)):
        say(console, best)
    console.print()
    say(console, f"Took:    {clock_time(run.progress.wall_seconds)}")
    if run.caps != Caps():
        say(console, f"Paid:    {run.caps.bill(PaidTime.of(run.progress), run.accelerator)}")
    idle = run.progress.idle_time()
    if idle is not None and idle.share > LEAST_IDLE_SHARE and idle.seconds > LEAST_IDLE_SECONDS:
        say(console, f"Idle:    {idle.sentence(run.accelerator)}.")
    trouble = renewed_report(run.directory)
    say_whole(console, f"Report:  {trouble or display_path(run.directory / REPORT_FILE)}")
    keep_trials(run.directory)
    for line in run.runner.results(run.study, run.directory):
        say_whole(console, line)
    return not trouble


def answers(run: StudyRun) -> list[str]:
    """The best setting of each stratum and what each field does, or a sentence that says why there is none."""
    from dashboards.study_results import answer_sentences
    from nfnet_ray.analysis import load_study

    return answer_sentences(load_study(run.directory))


def _health(run: StudyRun) -> list[tuple[str, str]]:
    """(sentence, command to copy) of each thing that deserves another look; the command may be empty."""
    from nfnet_ray.analysis import load_study
    from nfnet_ray.analysis.health import health_cards, health_lines

    return health_lines(health_cards(load_study(run.directory)))


def compare_command(run: StudyRun) -> str:
    """The command that opens MLflow on a comparison of the study's trials."""
    return shell_command([interpreter(), "-m", "dashboards.compare", display_path(run.directory)])


def say_ended_at_cap(run: StudyRun, reached: ReachedCap, console: Console) -> None:
    """Says which cap has ended the study, with the command that resumes it with a higher one."""
    say(
        console,
        f"{run.study.name} has ended early: {reached.reason}. Resume it with a higher cap, for example:",
    )
    say_whole(console, f"  {run.command_with({reached.name: reached.higher})}")
