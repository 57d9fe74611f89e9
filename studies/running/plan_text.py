"""The text of ``--plan``: the trials that would run, and what they cost."""

from __future__ import annotations

from rich.console import Console

from nfnet_ray.cluster.connection.session import available_cpus
from nfnet_ray.command_line.terminal import say
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.study.cost.plan import estimate_cost, training_multiply_adds
from nfnet_ray.study.display import plan_table
from nfnet_ray.study.study import Study
from nfnet_ray.wording import clock_time, count, speed


def print_plan(study: Study, data: DatasetSummary, workers: int, console: Console) -> None:
    """Prints what would run and what it costs, at the speed of this machine."""
    from nfnet_ray.training.probe import measure_images_per_second

    trials = study.trials()
    say(console, study.question, title=study.name)
    console.print(plan_table(study))
    cost = estimate_cost(study, trials, data)
    console.print()
    say(
        console,
        f"{count(len(trials), 'trial')} of {study.recipe.model.name} ({cost.parameters:,} parameters) of at most "
        f"{count(study.epochs, 'epoch')}: {count(cost.images, 'image')}, {cost.multiply_adds:.3g} multiply-adds.",
    )
    if study.is_adaptive and study.settings > len(study.trials_by_setting()):
        more = study.settings - len(study.trials_by_setting())
        say(
            console, f"{study.search_name} then proposes {count(more, 'more setting')}, not in these numbers."
        )
    classes = len(data.class_names)
    try:
        rate = measure_images_per_second(trials[0].recipe, classes, threads=1)
    except MemoryError:
        say(console, "How long that takes is unknown: a step does not fit into the memory of this machine.")
    else:
        # Other trials may need more time for each image, as those with SAM do: time is scaled by arithmetic.
        pace = rate * training_multiply_adds(trials[0].recipe, classes)
        side_by_side = max(1, min(len(trials), available_cpus() // workers))
        least, most = (
            clock_time(amount / pace / side_by_side)
            for amount in (cost.least_multiply_adds, cost.multiply_adds)
        )
        span = (
            f"{least} (if halving stops as many trials as it can) to {most} (if it stops none)"
            if study.halving
            else most
        )
        together = (
            f"with {count(side_by_side, 'trial')} side by side" if len(trials) > 1 else "on this machine"
        )
        say(
            console,
            f"{span} of training {together}, at {speed(rate)} images/s of the first: measured just now on this "
            "machine, on its GPU if it has one, else on one core.",
        )
    say(console, "Nothing was started.")
