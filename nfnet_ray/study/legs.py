"""Chooses the legs that one driver runs, and records how each leg ended and which decisions followed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import replace

from nfnet_ray.cohorts import company_of
from nfnet_ray.models.published import with_published_values
from nfnet_ray.study.added_trials import added_trials
from nfnet_ray.study.confirmation import FindWinners, planned_reruns
from nfnet_ray.study.contenders import FindContenders, further_trials
from nfnet_ray.study.decisions import Decider, Decision, Leg, has_ended
from nfnet_ray.study.recorder import Recorder
from nfnet_ray.study.search.upcoming import Waiting, has_proposals, next_proposal
from nfnet_ray.study.study import Study, Trial
from nfnet_ray.tracking.events import TrialOutcome, trial_paused, trial_promoted, trial_started


class Legs:
    """Returns the next leg whenever a place is free, and keeps track of the legs that are running.

    Args:
        validation_images: the number of images on which accuracies are measured, from which their noise is computed.
        find_contenders, find_winners: determine the contenders and the winners when all settings have ended. Without
            these functions no setting is trained with further seeds or confirmed.
    """

    def __init__(
        self,
        study: Study,
        validation_images: int,
        recorder: Recorder,
        find_contenders: FindContenders | None = None,
        find_winners: FindWinners | None = None,
    ) -> None:
        self._study, self._images = study.grown(recorder.state), validation_images
        self._find_contenders, self._find_winners = find_contenders, find_winners
        self._decider, self._recorder = Decider(self._study, validation_images), recorder
        self.running: dict[str, Leg] = {}
        """{trial: its leg} of the legs that have been started and have not ended."""
        trials = recorder.state.trials.values()
        self._again = {trial.name for trial in trials if trial.state == "failed"}
        self._interrupted: set[str] = set()
        self._trials: dict[str, Trial] = {}
        self._shared: dict[str, str | None] = {}
        # A driver that was killed may have left a pause unrecorded, and the decision that follows from it unmade.
        self._record_pauses()
        self._decide()

    def next(self) -> Leg | None:
        """Returns the leg to run next and marks it as running; None if no leg can start now.

        If no known trial can start and the search learns from results, new trials are proposed. When all settings have
        ended, the contenders are trained with further seeds, and then the winners are rerun.
        """
        while True:
            busy = {*self.running, *self._interrupted}
            leg = self._decider.next_leg(self._recorder.state, busy, self._again) or self._next_added(busy)
            if leg is not None:
                self.running[leg.trial] = leg
                self._again.discard(leg.trial)
                return leg
            if not self._propose():
                return None

    def next_cohort(self, most: int, free_places: int) -> list[Leg]:
        """Returns the next leg and others that can be trained with it as one program, and marks them as running.

        Returns at most ``most`` legs, and no more than an equal share of them if other free places would otherwise be
        empty. The list is empty if no leg can start now. Trials that failed before, and trials that are added when all
        settings have ended, are trained alone.
        """
        failed = set(self._again)
        first = self.next()
        if first is None:
            return []
        company = None if most == 1 or first.trial in failed else self._company(first)
        if company is None:
            return [first]
        state, busy = self._recorder.state, {*self.running, *self._interrupted}
        ready = self._decider.ready_legs(state, busy, self._again)
        companies = [None if leg.trial in self._again else self._company(leg) for leg in ready]
        legs = [first, *(leg for leg, own in zip(ready, companies, strict=True) if own == company)]
        counts = Counter(own for own in companies if own != company)
        elsewhere = counts.pop(None, 0) + sum(math.ceil(count / most) for count in counts.values())
        legs = legs[: min(most, math.ceil(len(legs) / max(1, free_places - elsewhere)))]
        self.running.update({leg.trial: leg for leg in legs})
        return legs

    def most_at_once(self) -> int | None:
        """Returns the largest number of legs that can still run at once; None while the study may add trials."""
        state, study = self._recorder.state, self._study
        adds_seeds = study.more_seeds and not state.has_contenders
        adds_settings = study.is_adaptive and len(study.trials_by_setting()) < study.settings
        if adds_seeds or adds_settings or (study.confirm and not state.has_winners):
            return None
        return sum(
            not has_ended(trial, self._again) and trial.name not in self._interrupted
            for trial in state.members
        )

    def _company(self, leg: Leg) -> Hashable | None:
        """Returns a key that is equal for legs that can be trained as one program; None if a leg is trained alone."""
        if leg.until_seconds is not None or not self._decider.has(leg.trial):
            return None
        if leg.trial not in self._shared:
            self._shared[leg.trial] = company_of(with_published_values(self.trial(leg.trial).recipe))
        shared = self._shared[leg.trial]
        epoch = self._recorder.state.trials[leg.trial].epoch
        return shared and (shared, epoch, replace(leg, trial=""))

    def trial(self, name: str) -> Trial:
        """Returns the trial of the given name."""
        if name not in self._trials:
            trials = self._study.trials() + added_trials(self._study, self._recorder.state)
            self._trials = {trial.name: trial for trial in trials}
        return self._trials[name]

    def start(self, name: str, lanes: int = 1) -> None:
        """Records that a leg has started, alone or as one of ``lanes`` trials of a cohort.

        A leg that continues a paused trial belongs to the same attempt.
        """
        trial = self._recorder.state.trials[name]
        self._recorder.record(trial_started(name, trial.attempts + (trial.state != "paused"), lanes))

    def pause(self, name: str) -> None:
        """Records that a trial has reached its rung, and the decisions that follow from it."""
        epoch = self._recorder.state.trials[name].epoch
        self._recorder.record(trial_paused(name, epoch, self.running[name].until_seconds))
        self._leave(name)

    def end(self, name: str, state: TrialOutcome, reason: str | None) -> None:
        """Records that a trial has ended, and the decisions on other trials that follow from it.

        A trial that has finished a complete schedule other than its last one pauses instead.
        """
        leg = self.running[name]
        if state == "finished" and leg.schedule_epochs is not None and leg.rung is not None:
            self.pause(name)
            return
        self._recorder.end_trial(name, state, reason)
        if state == "interrupted":
            self._interrupted.add(name)
        self._leave(name)

    def _propose(self) -> bool:
        """Records the trials of the next proposed setting.

        Returns False if there is no further setting, or none before others have ended.
        """
        state = self._recorder.state
        known = len(self._study.trials_by_setting())
        if self._recorder.lost or not self._study.is_adaptive or known >= self._study.settings:
            return False
        proposal = next_proposal(self._study, state)
        if isinstance(proposal, Waiting):
            return False
        if proposal is None:  # the space has no more points, so no trial at a rung need wait for them
            self._grow(replace(self._study, trial_limit=known))
            self._decide()
            return True
        for event in proposal.events(state):
            self._recorder.record(event)
        self._grow(self._study.grown(state))
        return not self._recorder.lost

    def _next_added(self, busy: Collection[str]) -> Leg | None:
        """Returns the leg of the next trial that the study adds when all settings have ended, to the trial's end."""
        state, study = self._recorder.state, self._study
        if not (study.more_seeds or study.confirm) or self._recorder.lost or not self._settings_have_ended():
            return None
        if study.more_seeds and not state.has_contenders:
            if self._find_contenders is None:
                return None
            self._recorder.record(further_trials(study, state, self._find_contenders(state)))
        if not all(has_ended(state.trials[name], self._again) for name in state.repeating):
            return self._first_leg_of(state.repeating, busy)
        if study.confirm and not state.has_winners:
            if self._find_winners is None:
                return None
            self._recorder.record(planned_reruns(study, state, self._find_winners(state)))
        return self._first_leg_of(state.confirming, busy)

    def _first_leg_of(self, names: Sequence[str], busy: Collection[str]) -> Leg | None:
        """Returns the leg, to the trial's end, of the first of these trials that can start now."""
        for name in names:
            if name not in busy and not has_ended(self._recorder.state.trials[name], self._again):
                return Leg(name, self.trial(name).recipe.schedule.epochs)
        return None

    def _settings_have_ended(self) -> bool:
        """Whether every setting has been trained and compared, and the search has no further proposals."""
        state = self._recorder.state
        return all(
            has_ended(state.trials[trial.name], self._again) for trial in self._study.trials()
        ) and not has_proposals(self._study, state)

    def _grow(self, study: Study) -> None:
        self._study, self._decider = study, Decider(study, self._images)

    def _leave(self, name: str) -> None:
        del self.running[name]
        self._decide()

    def _record_pauses(self) -> None:
        """Records the pauses of trials that wait at a rung, where the journal does not have them yet."""
        for leg, epoch in self._decider.unpaused(self._recorder.state, self.running, self._again):
            self._recorder.record(trial_paused(leg.trial, epoch, leg.until_seconds))

    def _decide(self) -> None:
        """Records every decision that can be made now, repeatedly, as each may make others possible."""
        state = self._recorder.state
        while decisions := self._decider.decisions(state, self.running, self._again):
            for decision in decisions:
                record_decision(self._recorder, decision, self._decider.where(decision))
            if self._recorder.lost:
                return
            if self._study.halving and self._study.halving.in_seconds:
                self._record_pauses()  # a long epoch may reach two rungs at once


def record_decision(recorder: Recorder, decision: Decision, where: str) -> None:
    """Records that a trial continues or is given up; ``where`` describes the rung in words."""
    epoch = decision.epoch
    if decision.verdict == "promoted":
        rung = None if decision.rung == epoch else decision.rung
        said = None if where == f"at epoch {epoch}" else where
        recorder.record(trial_promoted(decision.trial, epoch, decision.reason, rung, said))
    else:
        recorder.end_trial(decision.trial, "stopped", f"given up {where}: {decision.reason}")
