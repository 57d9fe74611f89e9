"""Shows the table of a study of which some trials have ended, as it would run; then takes it away.

Arguments: how many trials there are, how many have ended, and how many are running.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nfnet_ray.command_line.terminal import can_redraw, new_console, say
from nfnet_ray.metric import METRIC
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.halving import Halving
from nfnet_ray.study.live.display import StudyDisplay
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.state import StudyState

EPOCHS = 8
MARK = "\x1b[0h"  # for the test: this is what a person sees


def progress_of(study: Study, ended: int, running: int) -> StudyState:
    """The first ``ended`` trials have ended, the last of them as the best, and the next ``running`` run."""
    progress = study.waiting_state()
    for index, trial in enumerate(study.trials()[: ended + running]):
        events: list[Any] = [{"event": "trial_started", "time": 0.0, "trial": trial.name, "attempt": 1}]
        top1 = 0.9 if index == ended - 1 else 0.1
        metrics = {METRIC: top1, "train_seconds": 1.0, "images_per_second": 1234.5}
        events.append({"event": "epoch", "time": 1.0, "trial": trial.name, "epoch": 1, "metrics": metrics})
        if index < ended:
            state = "finished" if index == ended - 1 else ("stopped", "diverged")[index % 2]
            reason = "the training loss became nan in epoch 3, step 7" if state == "diverged" else None
            events.append({"event": "trial_ended", "trial": trial.name, "state": state, "reason": reason})
        for event in events:
            progress.apply(event)
    return progress


def many_trials(trials: int) -> Study:
    """A study of half as many clip factors, at two batch sizes."""
    space = {
        "optimizer.agc.clip_factor": tuple(number / 1000 for number in range(1, trials // 2 + 1)),
        "batch_size": (64, 256),
    }
    return Study("s", "?", Recipe().with_values({"schedule.epochs": EPOCHS}), space, halving=Halving(4))


def main() -> None:
    trials, ended, running = map(int, sys.argv[1:])
    study = many_trials(trials)
    console = new_console()
    say(console, "before")
    progress = study.waiting_state()
    drawn = 0

    def footnote() -> str:
        nonlocal drawn
        drawn += 1
        return "MLflow: 3 events waiting"

    with (
        TemporaryDirectory() as folder,
        StudyDisplay(study, progress, Path(folder), footnote, console) as display,
    ):
        progress.trials = progress_of(study, ended, running).trials
        display.update()
        display.note("A worker was lost; the workers start again from the last checkpoint.")
        before = drawn
        while can_redraw(console) and drawn < before + 3:  # the second of them is on the screen for certain
            time.sleep(0.01)
        os.write(1, MARK.encode())
    say(console, "after")


if __name__ == "__main__":
    main()
