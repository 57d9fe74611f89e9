"""Successive halving that compares like with like, and that survives a restart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from nfnet_ray.metric import METRIC
from nfnet_ray.study.study import Halving

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController


@dataclass(frozen=True)
class _ByName:
    """A trial as ASHA sees it: it reads nothing but the id."""

    trial_id: str


# ASHA is handed Tune's controller, and does not use it.
_NO_CONTROLLER: Any = None


class StratifiedHalving(FIFOScheduler):
    """One ASHA scheduler of Ray Tune for each stratum.

    Tune does not save a scheduler's state (ray#30838), so a study that resumes rebuilds it: :meth:`replay` takes every
    epoch in the journal. Trials are identified by their name in the study, which a restart does not change, and not by
    Tune's random id.
    """

    def __init__(self, strata: Mapping[str, str], halving: Halving, epochs: int) -> None:
        super().__init__()
        # {trial: its stratum}, {trial: its last epoch}
        self._strata = dict(strata)
        self._seen: dict[str, int] = {}
        self._rivals = {
            stratum: ASHAScheduler(
                time_attr="epoch",
                metric=METRIC,
                mode="max",
                max_t=epochs,
                grace_period=min(halving.grace_epochs, epochs),
                reduction_factor=halving.reduction_factor,
                # A trial that reaches its last epoch ends by itself.
                stop_last_trials=False,
            )
            for stratum in set(strata.values())
        }

    def replay(self, epochs: Iterable[tuple[str, int, float]]) -> dict[str, int]:
        """Takes the (trial, epoch, validation top-1) that were reported before the restart.

        Returns {trial: epoch} of the trials that it stops after the last epoch that they reported. The journal says so
        already, unless the driver was killed in between.
        """
        stopped: dict[str, int] = {}
        for name, epoch, top1 in epochs:
            trial = _ByName(name)
            if name not in self._seen:
                self._rivals[self._strata[name]].on_trial_add(_NO_CONTROLLER, cast(TuneTrial, trial))
            decision = self._decide(trial, {"epoch": epoch, METRIC: top1})
            stopped.pop(name, None)
            if decision == self.STOP:
                stopped[name] = epoch
        return stopped

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_add(self, tune_controller: TuneController, trial: TuneTrial) -> None:
        self._rivals_of(trial).on_trial_add(tune_controller, _named(trial))

    def on_trial_result(
        self, tune_controller: TuneController, trial: TuneTrial, result: dict[str, Any]
    ) -> str:
        del tune_controller
        return self._decide(_named(trial), result)

    def _decide(self, trial: Any, result: dict[str, Any]) -> str:
        """Decides once per epoch: a trial that resumes reports the epoch of its checkpoint again."""
        if METRIC not in result or result["epoch"] <= self._seen.get(trial.trial_id, 0):
            return self.CONTINUE
        self._seen[trial.trial_id] = result["epoch"]
        rivals = self._rivals[self._strata[trial.trial_id]]
        decision: str = rivals.on_trial_result(_NO_CONTROLLER, trial, result)
        return decision

    def on_trial_complete(
        self, tune_controller: TuneController, trial: TuneTrial, result: dict[str, Any]
    ) -> None:
        self._rivals_of(trial).on_trial_complete(tune_controller, _named(trial), result)

    def on_trial_remove(self, tune_controller: TuneController, trial: TuneTrial) -> None:
        self._rivals_of(trial).on_trial_remove(tune_controller, _named(trial))

    def _rivals_of(self, trial: TuneTrial) -> ASHAScheduler:
        return self._rivals[self._strata[trial.config["trial"]["name"]]]


def _named(trial: TuneTrial) -> Any:
    return _ByName(trial.config["trial"]["name"])
