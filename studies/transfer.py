"""What are pretrained weights worth on few images, and should the whole network be trained or only the classifier?

Question. A network that was trained on one task starts another task with those weights and a new classifier. Brock
et al. (2021, section 6.2, appendix A.5) fine-tune whole NFNets in this way. How does that compare with training only
the classifier, and with the same network from scratch? Which learning rate does each of them need?

Command. ``python studies/transfer.py`` on one machine: nfnet_pico learns the digits 0 to 4 of scikit-learn's (20
epochs, once, 15 s), and starts on the digits 5 to 9 from there, with ten training images of each and the other 846 for
validation. For real: ``python studies/transfer.py --weights F0_haiku.npz --data data/flowers``, with a published file,
timm's weights or a checkpoint of nfnet_ray (docs/methods/transfer.md); the network is recognised from the weights. For
a different resolution add ``--set data.image_size=224 --set data.eval_size=288``.

What is compared. Pretrained or random weights, each with the whole network trained or only its classifier: four
strata, each with its best learning rate. Training only the classifier of a random network is the control for the
frozen body. The Recipe is the paper's for fine-tuning (warm-up over a third of the steps, weight
decay 1e-5, dropout 0.25, stochastic depth 0.1, SAM with a rho of 0.05) for all of them, so that they differ in
nothing else. The paper's learning rate, 0.0125 for each 256 images, is among those for your own weights; batches of
ten images need more. No trial is stopped early, because a network from scratch starts more slowly.

Cost. 16 trials of 24 epochs: three minutes on two CPU cores that other work shared.

Result. On the digits pretrained weights win in both cases, and training the whole network is far better. Top-1
after 24 epochs, from the first command (1 seed, 846 validation images, so 95.9% is 94.2 to 97.0%; nfnet_pico, float32,
two shared cores of an AMD EPYC, torch 2.15):

    learning rate for each 256 images     0.4    1.6    6.4   25.6
    classifier, pretrained weights       80.4   81.4   77.1   77.4
    classifier, random weights           40.1   64.5   62.4   61.8
    whole network, pretrained weights    92.0   94.8   95.9   95.4
    whole network, random weights        65.8   87.2   94.2   94.2

At the best rate of each, starting from the digits 0 to 4 avoids three tenths of the whole network's errors. At smaller
rates it avoids far more, because a network from scratch gets nowhere with them in 120 steps. Digits resemble digits:
this says nothing about a more distant pair of tasks.
"""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first: what follows takes seconds to import

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep.digits import FIRST_HALF, SECOND_HALF_FEW, describe_digits, write_digits
from nfnet_ray.cluster.connection.job import home_folder
from nfnet_ray.command_line.terminal import say
from nfnet_ray.data.files.dataset import DatasetSummary, check_dataset
from nfnet_ray.errors import UserError
from nfnet_ray.models.baselines import BASELINES
from nfnet_ray.models.published import FINETUNING_EPOCHS, finetuning_values
from nfnet_ray.recipe import ModelRecipe, Recipe
from nfnet_ray.study.study import Study
from nfnet_ray.whole_file import whole_file
from nfnet_ray.wording import count
from studies.base_recipe import batch_size_for, recipe_for
from studies.running.flags import main
from studies.running.program import MadeWeights, StudyProgram

QUESTION = "Which learning rate is best with pretrained weights and without, for the whole network and the classifier?"
PRETRAINING_DATA = Path("data") / FIRST_HALF.name
PRETRAINING_EPOCHS = 20  # to 99% of the digits 0 to 4
PRETRAINING_BATCH_SIZE = 48  # 15 of them are an epoch
PRETRAINING_EPOCHS_A_LINE = 5
LEARNING_RATES = (0.0125, 0.05, 0.2, 0.8)  # the paper's (A.5) and larger: a classifier alone tolerates more
LEARNING_RATES_OF_FEW_IMAGES = (0.4, 1.6, 6.4, 25.6)  # for each 256 images: batches of ten need larger steps
LEAST_STEPS_PER_EPOCH = 5


def transfer(data: DatasetSummary, epochs: int | None = None, weights: str | None = None) -> Study:
    """The study on a data set: four learning rates, with pretrained or random weights, for all or the classifier.

    Raises UserError for weights of an unknown network, and for the user's own data without weights.
    """
    epochs = epochs or FINETUNING_EPOCHS
    batch_size = min(batch_size_for(data), max(1, data.train_images // LEAST_STEPS_PER_EPOCH))
    recipe = recipe_for(data, epochs)
    if weights is None:
        if data.class_names != tuple(SECOND_HALF_FEW.digits):
            raise UserError(
                f"from which weights should {data.path} be learned? Name a file with --weights, such as F0_haiku.npz"
            )
        path, rates = built_in_weights(), LEARNING_RATES_OF_FEW_IMAGES
    else:
        recipe, path, rates = _with_network_of(weights, recipe), home_folder() / weights, LEARNING_RATES
    return Study(
        name="transfer",
        question=QUESTION,
        recipe=recipe.with_values(
            finetuning_values(epochs)
            | _clipping_of(recipe.model.name)
            | {"batch_size": batch_size, "model.weights": str(path)}
        ),
        space={
            "schedule.base_learning_rate": rates,
            "model.trained": ("classifier", "all"),
            "model.weights": (str(path), None),
        },
    )


def built_in_weights() -> Path:
    """The file of the weights of the digits 0 to 4. Its name contains the fingerprint of the Recipe that made them."""
    recipe = _pretraining_recipe(describe_digits(PRETRAINING_DATA, FIRST_HALF))
    return home_folder() / "data" / f"digits_0_to_4-{recipe.fingerprint()}.pt"


def pretrain(path: Path, console: Console, epochs: int = PRETRAINING_EPOCHS) -> None:
    """Trains the small network on the digits 0 to 4, on one CPU core, and writes its weights.

    They are the same each time on a machine. A checkpoint of each epoch is kept until the end, to resume from.
    """
    import torch
    from filelock import FileLock, Timeout

    from nfnet_ray.training import PlainContext, train

    data = check_dataset(write_digits((home_folder() / PRETRAINING_DATA).resolve(), FIRST_HALF))
    recipe = _pretraining_recipe(data, epochs)

    def report(metrics: Any) -> None:
        if metrics["epoch"] % PRETRAINING_EPOCHS_A_LINE == 0:
            say(
                console, f"  epoch {metrics['epoch']:.0f} of {epochs}: top-1 {metrics['validation_top1']:.1%}"
            )

    checkpoints = path.with_suffix(".checkpoints")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(console, f"Another process trains the weights of the digits 0 to 4: waiting for {path.name}.")
        lock.acquire()
    try:
        if path.exists():  # by another process, meanwhile
            return
        images = count(data.train_images, "image")
        say(console, f"First, once: {recipe.model.name} learns the digits 0 to 4 ({images}).")
        try:
            outcome = train(
                recipe,
                PlainContext(
                    device=torch.device("cpu"), threads=1, checkpoints=checkpoints, on_report=report
                ),
            )
        except KeyboardInterrupt:
            say(console, "Stopped; the next start resumes from the last epoch.")
            raise
        with whole_file(path) as file:
            torch.save(outcome.model.state_dict(), file)
        shutil.rmtree(checkpoints, ignore_errors=True)
    finally:
        lock.release()


def _pretraining_recipe(data: DatasetSummary, epochs: int = PRETRAINING_EPOCHS) -> Recipe:
    return recipe_for(data, epochs).with_values({"batch_size": PRETRAINING_BATCH_SIZE})


def _clipping_of(name: str) -> dict[str, object]:
    """Baselines are fine-tuned without AGC, as they were trained, and their classifiers have other names."""
    if name not in BASELINES:
        return {}
    return {"optimizer.agc.clip_factor": None, "optimizer.agc.exclude": (BASELINES[name].classifier_weight,)}


def _with_network_of(weights: str, recipe: Recipe) -> Recipe:
    """The Recipe with the network to which a file's weights belong; for an unknown one, a later check refuses them."""
    # It imports torch, which nothing else here needs.
    from nfnet_ray.models.weights.pretrained import recognise_model

    return replace(recipe, model=recognise_model(weights) or ModelRecipe(recipe.model.name))


PROGRAM = StudyProgram(
    transfer,
    digits=SECOND_HALF_FEW,
    flags={
        "weights": {
            "metavar": "FILE",
            "help": "pretrained weights to start from (default: those of a small network, trained on first use)",
        }
    },
    made_weights=MadeWeights(built_in_weights, pretrain),
)

if __name__ == "__main__":
    sys.exit(main(PROGRAM, Path(__file__)))
