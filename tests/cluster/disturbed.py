"""``studies/train.py`` as a person runs it, but slow enough to be disturbed, and with what a test wants to go wrong.

``python disturbed.py FOLDER ARGUMENTS OF studies/train.py``. FOLDER is the test's: in it stand the settings
(``disturbance.json``), and the workers write there which samples they trained on (``samples-*.txt``).

``python disturbed.py FOLDER --study ARGUMENTS OF studies/sweep.py`` is the same of a study whose trials have several
workers; the settings of a trial are those under its name.

``python disturbed.py FOLDER --plain RECIPE.json OUT`` is the same training by two workers without Ray and without any
disturbance: what the others are compared with.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

REPOSITORY = Path(__file__).resolve().parents[2]
if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
LEAKED_BYTES = 2**29
TRIAL = [""]
"""The trial that this process trains is the last one."""


def settings(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "disturbance.json").read_text())
    except (OSError, ValueError):  # it is being replaced
        return {}
    return found


def note_samples_and_dawdle(folder: Path, rank: int) -> None:
    """From now on each step of this process notes its samples, and takes as long as the settings say."""
    from nfnet_ray.training.step import TrainStep

    true_step = TrainStep.__call__
    leaked = []

    def step(self: Any, batch: Any) -> Any:
        now = settings(folder)
        now |= now.get(TRIAL[-1], {})
        if [rank, self.number] == now.get("hang") and not (folder / "has_hung").exists():
            (folder / "has_hung").touch()
            time.sleep(10_000)
        if [rank, self.number] == now.get("dies") and not (folder / "has_died").exists():
            (folder / "has_died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if [rank, self.number] == now.get("leaks"):
            leaked.append(bytes([1]) * LEAKED_BYTES)
        if [rank, self.number] == now.get("fails"):
            raise ValueError("this network cannot do that")
        time.sleep(now.get("step_seconds", 0.0))
        with (folder / f"samples-{os.getpid()}.txt").open("a") as file:
            file.write(json.dumps([self.number, batch.indices.tolist()]) + "\n")
        return true_step(self, batch)

    TrainStep.__call__ = step  # type: ignore[method-assign]


def disturbed_worker(slot: dict[str, Any]) -> None:
    """In the place of ``work_in_slot``; a function of __main__ travels to the workers by value."""
    import ray.train

    from nfnet_ray.cluster import worker

    rank = ray.train.get_context().get_world_rank()
    note_samples_and_dawdle(FOLDER, rank)
    true_train = worker.train_in_group

    def train_in_group(config: Any, *others: Any) -> bool:
        TRIAL.append(config["name"])
        if settings(FOLDER).get("storage_apart"):  # as if each machine had a disk of its own there
            config = config | {"checkpoints": f"{config['checkpoints']}-{rank}"}
        return true_train(config, *others)

    worker.train_in_group = train_in_group
    worker.LEAST_GROWTH, worker.LEAST_GROWTH_BYTES = 1.0, LEAKED_BYTES // 2
    worker.work_in_slot(slot)


def plain_training(recipe_file: Path, out: Path) -> int:
    """By two workers, forked after one import of torch; the exit code."""
    import nfnet_ray.training  # noqa: F401

    workers = [os.fork() or _exit_after(plain_worker, rank, recipe_file, out) for rank in range(2)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) for worker in workers]
    return max(map(abs, codes))


def _exit_after(work: Callable[..., None], *arguments: Any) -> NoReturn:
    code = 1
    try:
        work(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def plain_worker(rank: int, recipe_file: Path, out: Path) -> None:
    """Trains as one of two workers that know nothing of Ray, and keeps the weights."""
    import torch
    import torch.distributed as dist

    from nfnet_ray.recipe import Recipe
    from nfnet_ray.training import PlainContext, train

    class Worker(PlainContext):
        world_size = 2  # type: ignore[assignment]
        replicas = 2  # type: ignore[assignment]

    dist.init_process_group("gloo", init_method=f"file://{out}.meet", rank=rank, world_size=2)
    context = Worker(device=torch.device("cpu"), threads=1)
    context.rank = rank  # type: ignore[misc]
    note_samples_and_dawdle(FOLDER, rank)
    outcome = train(Recipe.from_values(json.loads(recipe_file.read_text())), context)
    if rank == 0:
        torch.save(outcome.model.state_dict(), out)
    dist.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[2] == "--plain":
        sys.exit(plain_training(Path(sys.argv[3]), Path(sys.argv[4])))
    else:
        from nfnet_ray.cluster import trainer
        from nfnet_ray.cluster.messages import configs
        from studies import sweep, train
        from studies.running.flags import main

        trainer.work_in_slot = disturbed_worker
        configs.SECONDS_BETWEEN_RESIZES = 2.0
        if sys.argv[2] == "--study":
            sys.exit(main(sweep.PROGRAM, Path(__file__), sys.argv[3:]))
        train.__file__ = __file__  # the command that resumes is this one
        sys.exit(train.main(sys.argv[2:]))
