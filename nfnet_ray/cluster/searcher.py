"""Gives Ray Tune the next leg of a study whenever it asks for a trial.

To Tune each leg is a trial. Tune's own schedulers can end trials, but ASHA cannot let a trial wait at a rung and
continue later (ray#32634), and Tune does not save a scheduler's state (ray#30838). Here the journal has everything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from nfnet_ray.cluster.mailbox import Register
from nfnet_ray.cluster.messages.configs import WorkerConfig, tune_space
from nfnet_ray.study.decisions import Leg
from nfnet_ray.study.legs import Legs


class LegSearcher(Searcher):
    """The object that Tune asks for the next trial.

    Args:
        config: the configuration of the workers of a leg.
        stop: an event. Once it is set, no further leg is started.
        places: the number of Tune trials that run at once.
        lanes: the largest number of legs that are trained as one program.
    """

    def __init__(
        self,
        legs: Legs,
        config: Callable[[Leg], WorkerConfig],
        stop: threading.Event,
        places: int,
        lanes: int,
    ) -> None:
        super().__init__()
        self._legs, self._config, self._stop = legs, config, stop
        self._places, self._lanes = places, lanes
        self._program_of: dict[str, str] = {}
        self.registers: dict[str, Register] = {}
        """{trial: the register in which the workers of its latest leg read requests}."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, since Tune pickles its searcher into a state that this project does not use."""
        return {}

    def __deepcopy__(self, _memo: dict[int, Any]) -> LegSearcher:
        """Itself, since Tune copies its configuration but must ask this very object."""
        return self

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # pyrefly: ignore[bad-override]  # Tune says less
        """Finds the next legs to train.

        Returns their :func:`tune_space`, None if Tune has to ask again later, or ``FINISHED`` if no leg is left.
        """
        if self._stop.is_set():
            return self.FINISHED
        busy = {self._program_of.get(trial) for trial in self._legs.running}
        legs = self._legs.next_cohort(self._lanes, self._places - len(busy))
        if not legs:
            return None if self._legs.running else self.FINISHED
        configs = [self._config(leg) for leg in legs]
        for config in configs:
            self.registers[config["name"]] = Register(config["mailbox"])
            self._program_of[config["name"]] = trial_id
        return tune_space(configs)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Does nothing, since the journal's callback has recorded it."""

    def save(self, checkpoint_path: str) -> None:
        """Does nothing, since the journal has everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing, since nothing was saved."""
