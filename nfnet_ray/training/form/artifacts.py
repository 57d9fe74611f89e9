"""Files with code that torch.compile has generated, so that a study's first trial compiles for all others.

On one machine the compiler's own cache does that. These files bring its entries to other machines: the first trial that
has compiled a step writes a file beside the study's results, atomically, and later trials load it into their cache
before they compile.

The entries are code that will run. So a file is loaded only if its hash is the one that a worker of the same driver has
announced. Hashes go through the memory of the cluster's head, and not through the storage. An error costs a
compilation, and never a training.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from nfnet_ray.models.baselines import BASELINES
from nfnet_ray.recipe import ResolvedRecipe
from nfnet_ray.training.checkpoints.storage import storage_at

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompiledFiles:
    """The folder of the files, and the functions by which workers announce them to each other.

    Attributes:
        place: a path or URI that all workers share.
        announced: returns the BLAKE2b hash, in hex, that a worker has announced for a file; None if none has.
        announce: announces a name and a hash.
    """

    place: str
    announced: Callable[[str], str | None]
    announce: Callable[[str, str], object]
    known: set[str] = field(default_factory=set)
    """The names of the files whose entries this process has."""

    def load(self, name: str) -> bool:
        """Loads a file into the compiler's cache. Returns whether it was sound, and not loaded before."""
        if name in self.known:
            return False
        try:
            digest = self.announced(name)
            if digest is None:
                return False
            self.known.add(name)  # a damaged file is not tried again either
            with storage_at(self.place).open(name) as file:
                content = file.read()
            if _digest(content) != digest:
                logger.warning("%s/%s is not what was written there: compiling anew", self.place, name)
                return False
            info = torch.compiler.load_cache_artifacts(content)
        except Exception as error:  # from a storage, from Ray, or from torch for a file of another version
            logger.warning("%s/%s cannot be used (%s): compiling anew", self.place, name, error)
            return False
        if info is None or info.empty():
            logger.warning("%s/%s is empty: compiling anew", self.place, name)
            return False
        logger.info(
            "%s/%s: %d compiled graphs are in the cache", self.place, name, len(info.inductor_artifacts)
        )
        return True

    def save(self, name: str) -> bool:
        """Writes and announces the code that this process has compiled. Returns whether it was the first to do so."""
        if name in self.known:
            return False
        try:
            self.known.add(name)
            made = torch.compiler.save_cache_artifacts() if self.announced(name) is None else None
            if made is None:
                return False
            content, _ = made
            storage_at(self.place).write(name, lambda file: file.write(content))
            self.announce(name, _digest(content))
        except Exception as error:
            logger.warning("%s/%s could not be written (%s): others compile anew", self.place, name, error)
            return False
        return True


def file_name(recipe: ResolvedRecipe, images_shape: Sequence[int], workers: int, device_name: str) -> str:
    """The name of the file for the steps of a Recipe on images (N, H, W, 3) of one worker. The form is chosen.

    The name is a hash of all values on which the generated code depends. A learning rate is not among them. The drop
    rates of an NFNet are not either, except for whether they are 0; other networks have theirs in their code.
    """
    model, sam = recipe.model.to_values(), recipe.optimizer.sam
    if not recipe.model.is_own and recipe.model.name not in BASELINES:
        model |= {name: model[name] > 0 for name in ("dropout", "stochastic_depth")}
    decisive = {
        **{name: value for name, value in model.items() if name != "weights"},
        "images": list(images_shape),
        "micro_batches": recipe.micro_batches,
        "precision": recipe.precision,
        "memory_format": recipe.memory_format,
        "compile": recipe.compile,
        "grouped_convolutions": recipe.grouped_convolutions,
        "activation_memory_budget": recipe.activation_memory_budget,
        "sam": None if sam.rho is None else [sam.method, sam.ascent_share, sam.perturbation],
        "workers": workers,
        "device": device_name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }
    text = json.dumps(decisive, sort_keys=True, default=str)
    return f"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.compiled"


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=32).hexdigest()
