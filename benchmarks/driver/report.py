"""The report of a long study: how long it takes to write, how large it is: ``python -m benchmarks.driver.report``.

The studies are made up: two fields, 100 epochs with the metrics that a training reports, what AGC clipped at 32 of
them, and which of 10,000 validation images were correct at the end. Two things are measured, each in processes of their
own, one after the other.

*Writing*: ``python -m dashboards.report`` as a whole (``seconds``, ``cpu_seconds``), and a report that a
process writes after its first one, as the driver of a study does (``again_cpu_seconds``).

*Reading*, if Chromium and chromedriver are installed: how long the page takes from its opening until all its charts are
drawn (``open_seconds``), and the slowest of a click on a level of the legend, on the button for all curves, on a
heading of the table and of a word for its filter (``click_seconds``), until the next frame is drawn.

Appends a row for each number of trials to ``results/report.csv``.
"""

from __future__ import annotations

import math
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import orjson
import torch

from benchmarks.record import Row, append_rows, hardware
from nfnet_ray.clipping import BINS, EDGES, OCTAVES, clipping_from_counts
from nfnet_ray.cluster.connection.resources import Resources, WorkerResources
from nfnet_ray.command_line.arguments import positive
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.correct_images import CorrectImages
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.metric import METRIC
from nfnet_ray.processor import available_cpus
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.study import Study, Trial
from nfnet_ray.tracking.events import Event, epoch_ended, study_ended, trial_ended, trial_started
from nfnet_ray.tracking.journal import JOURNAL_FILE
from studies.running.started_event import started_event

RESULTS = Path(__file__).parents[1] / "results" / "report.csv"
REPEATS = 3
EPOCHS, VALIDATION_IMAGES = 100, 10_000
CLIP_FACTOR = "optimizer.agc.clip_factor"
# What a training keeps at most (nfnet_ray/training/measurement).
CLIPPING_RECORDS = 32
LAYERS = [
    ("stem.0", "stem", 16),
    *((f"blocks.{n}.conv{n % 4}", f"stage {1 + n // 6}", 64) for n in range(24)),
]
WRITE_TWICE = """
import sys, time
from pathlib import Path
from dashboards.report import write_report
write_report(Path(sys.argv[1]))
began = time.process_time()
write_report(Path(sys.argv[1]))
print(time.process_time() - began)
"""
OPENED = "return typeof charts !== 'undefined' && charts.every(chart => chart.drawn) && performance.now()"
CLICKED = """
const [selector, typed, done] = arguments;
const element = document.querySelector(selector);
if (!element) done(0);
const began = performance.now();
if (typed) { element.value = typed; element.dispatchEvent(new Event("input")); } else element.click();
requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
"""
CLICKS = (
    ("[data-level]", ""),
    ("button.all", ""),
    ("#trials th:last-child button", ""),
    (".pager input", "finished 0.0"),
)


def study_of(trials: int) -> Study:
    """A study of two batch sizes, and of half as many clip factors as trials."""
    factors = np.geomspace(0.001, 1, trials // 2)
    space = {CLIP_FACTOR: tuple(float(f"{factor:.4g}") for factor in factors), "batch_size": (64, 256)}
    recipe = Recipe().with_values({"schedule.epochs": EPOCHS})
    return Study("benchmark", "how long does a report take?", recipe, space)


def clipping_texts(factors: Sequence[float]) -> dict[float, str]:
    """{clip factor: a record of what it clipped}."""
    texts = {}
    for factor in factors:
        ratios = 0.02 * np.exp2(np.linspace(-4, 4, 201))
        row = np.bincount(np.searchsorted(EDGES, ratios), minlength=BINS)
        counts = np.stack([row * units for _, _, units in LAYERS])
        clipped = np.array([units for _, _, units in LAYERS]) * int((ratios > factor).sum())
        texts[factor] = clipping_from_counts(LAYERS, counts, clipped, 201, [1] * len(OCTAVES)).to_text()
    return texts


def events_of(study: Study) -> Iterator[Event]:
    """The events of a study that has finished; its best clip factor is 0.02, or 0.01 for large batches."""
    data = DatasetSummary(
        Path("made_up"), 50_000, VALIDATION_IMAGES, tuple(map(str, range(10))), "0" * 12, None
    )
    resources = Resources(1, 2.0, 0.0, 16.0, "2 CPUs", ((2.0, 0.0),))
    started = started_event(study, data, resources, WorkerResources(1, 1, 0.0))
    started["study"]["places"] = 2
    yield started
    texts = clipping_texts(study.space[CLIP_FACTOR])  # pyrefly: ignore[bad-argument-type]  # it is a list of numbers
    now = started["time"]
    for trial in study.trials():
        for event in _events_of_trial(trial, texts):
            now += 20.0
            yield {**event, "time": now}  # pyrefly: ignore[invalid-yield]  # no union is seen in a spread one
    yield {**study_ended("finished", now - started["time"]), "time": now}


def _events_of_trial(trial: Trial, texts: dict[float, str]) -> Iterator[Event]:
    values = trial.recipe.to_values()
    factor, batch = values[CLIP_FACTOR], values["batch_size"]
    draw = random.Random(trial.name)
    final = 0.95 - 0.03 * abs(math.log2(factor / (0.02 if batch == 64 else 0.01))) ** 1.3
    is_lost = factor > 0.9
    yield trial_started(trial.name, 1)
    for epoch in range(1, EPOCHS + 1):
        share = max(0.1, final) * (1 - math.exp(-4 * epoch / EPOCHS)) + draw.gauss(0, 0.004)
        top1 = round(VALIDATION_IMAGES * min(1.0, max(0.0, share))) / VALIDATION_IMAGES
        seconds = 18.3 * epoch * (1 if batch == 64 else 0.8) + draw.random()
        metrics: dict[str, float | None] = {
            "images_per_second": 560 + 30 * draw.random(),
            "model_tflops_per_second": 0.0248 + draw.random() / 1e3,
            "peak_resident_bytes": 930_083_000.0 + epoch,
            METRIC: top1,
            "validation_top5": min(1.0, top1 + 0.04),
            "validation_loss": 2.4 * (1 - top1) + draw.random() / 100,
            "train_loss": 2.3 * (1 - top1) + draw.random() / 100,
            "train_top1": max(0.0, top1 - 0.02),
            "agc_clipped_fraction": draw.random(),
            "learning_rate": 0.1 * math.cos(math.pi * epoch / EPOCHS / 2),
            "startup_seconds": 3.4251,
            "warmup_seconds": 0.0,
            "train_seconds": seconds,
            "data_wait_seconds": 0.5 * epoch + draw.random(),
            "eval_seconds": 6.0 * epoch + draw.random(),
            "checkpoint_seconds": 0.01 * epoch,
            "report_seconds": 0.02 * epoch,
            "lost_seconds": 0.0,
            "paused_seconds": 0.0,
        }
        kept = {"clipping": texts[factor]} if epoch % (EPOCHS // CLIPPING_RECORDS + 1) == 0 else {}
        if epoch == EPOCHS and not is_lost:
            correct = np.random.default_rng(epoch).random(VALIDATION_IMAGES) < top1
            kept["correct_images"] = CorrectImages(correct, np.ones_like(correct)).to_text()
        yield epoch_ended(trial.name, epoch, metrics, kept)
        if is_lost and epoch == EPOCHS // 2:
            yield trial_ended(
                trial.name, "diverged", f"the validation loss became nan after epoch {epoch}", epoch
            )
            return
    yield trial_ended(trial.name, "finished", None, EPOCHS)


def write(study: Study, directory: Path) -> None:
    """Writes the journal, without waiting for the disk after each line."""
    with (directory / JOURNAL_FILE).open("wb") as stream:
        for event in events_of(study):
            stream.write(orjson.dumps(event) + b"\n")


def measured(command: Sequence[str]) -> tuple[float, float]:
    """(seconds, CPU seconds) of a process."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: status {status}")
    seconds = time.perf_counter() - began
    return seconds, usage.ru_utime + usage.ru_stime


def reading(page: Path) -> tuple[float | None, float | None]:
    """(seconds until all charts are drawn, seconds of the slowest click) in Chromium, None where there is none."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        return None, None
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.support.wait import WebDriverWait

    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    with TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        for option in ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"):
            options.add_argument(option)
        driver = Chrome(options, Service(shutil.which("chromedriver")))
        try:
            opened = []
            for _ in range(REPEATS):
                driver.get(page.resolve().as_uri())
                milliseconds = WebDriverWait(driver, 120, 0.05).until(lambda it: it.execute_script(OPENED))
                opened.append(float(milliseconds) / 1e3)
            clicks = [driver.execute_async_script(CLICKED, *click) / 1e3 for click in CLICKS]
        finally:
            driver.quit()
    return statistics.median(opened), max(clicks)


def measure(trials: int) -> Row:
    """The times and sizes of one study's report."""
    if trials % 2:
        raise SystemExit(f"{trials} trials: take an even number, for two batch sizes")
    with TemporaryDirectory() as name:
        directory = Path(name)
        write(study_of(trials), directory)
        journal_mb = (directory / JOURNAL_FILE).stat().st_size / 1e6
        runs = [measured([sys.executable, "-m", "dashboards.report", name]) for _ in range(REPEATS)]
        again = subprocess.run(
            [sys.executable, "-c", WRITE_TWICE, name], check=True, stdout=subprocess.PIPE, text=True
        )
        page = directory / "report.html"
        opened, clicked = reading(page)
        seconds, cpu_seconds = map(statistics.median, zip(*runs, strict=True))
        return {
            "trials": trials,
            "journal_mb": round(journal_mb, 1),
            "seconds": round(seconds, 2),
            "cpu_seconds": round(cpu_seconds, 2),
            "again_cpu_seconds": round(float(again.stdout), 2),
            "page_mb": round(page.stat().st_size / 1e6, 2),
            "open_seconds": "" if opened is None else round(opened, 2),
            "click_seconds": "" if clicked is None else round(clicked, 2),
            "n": REPEATS,
        }


def main() -> None:
    """Measures, prints, and appends to the results."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument(
        "trials",
        nargs="*",
        type=positive,
        default=[2, 100, 1000],
        help="numbers of trials, one study for each (default: %(default)s)",
    )
    about: Row = {
        "hardware": hardware(torch.device("cpu"), threads=available_cpus()),
        "python": platform.python_version(),
    }
    append_rows(RESULTS, [measure(trials) | about for trials in parser.parse_args().trials])


if __name__ == "__main__":
    main()
