"""The events that a driver records about the study itself: that it starts or is resumed, its extension, its notes."""

from __future__ import annotations

import time
from collections.abc import Callable

from nfnet_ray.models.own.source import COPIES_FOLDER, keep_copies
from nfnet_ray.study.recorder import Recorder
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.descriptions import Hardware
from nfnet_ray.tracking.events import StudyStarted, study_annotated, study_ended, study_resumed
from nfnet_ray.tracking.journal import JOURNAL_FILE, Journal
from nfnet_ray.tracking.running_lock import alone_with
from studies.running.execution.last_checks import check_journal_is_as_it_was
from studies.running.execution.study_run import StudyRun
from studies.running.kept_files import keep_program
from studies.running.runner import Places
from studies.running.started_event import (
    hardware,
    network_description,
    started_event,
    versions,
    without_secrets,
)


def record_beginning(run: StudyRun, recorder: Recorder, study: Study, places: Places) -> None:
    """Records that this driver starts or resumes the study on these places, and keeps a copy of its code."""
    keep_copies(run.directory / COPIES_FOLDER, run.network_sources())
    if run.progress.started is None:
        started = study_started_event(run, study, places)
        recorder.record(started)
        keep_program(run.directory, started, run.program_file)
    else:
        event = study_resumed(run.changed, run.given_caps, places.number, _hardware(places), versions())
        recorder.record(event)
        _record_extension(run, recorder)
        _record_new_annotations(run, recorder)


def record_without_training(run: StudyRun, on_event: Callable[[], None]) -> None:
    """Records what this command adds to a study that has nothing to train: an extension, notes and tags."""
    if run.extended is None and not run.annotations.beyond(run.progress):
        return
    with alone_with(run.directory), Journal(run.directory / JOURNAL_FILE) as journal:
        check_journal_is_as_it_was(run)
        recorder = Recorder(journal, run.progress, on_event, lambda _: None)
        if run.extended is not None:
            recorder.record(study_resumed(run.changed, run.given_caps))
            _record_extension(run, recorder)
            recorder.record(study_ended("finished", run.progress.wall_seconds))
        _record_new_annotations(run, recorder)


def study_started_event(run: StudyRun, study: Study, places: Places) -> StudyStarted:
    """The first event of the journal; ``study`` is ``run.study`` with what depends on its places."""
    event = started_event(
        study,
        run.data,
        places.resources,
        places.worker,
        lambda word: without_secrets(word, run.notify_url),
        run.program_file,
    )
    description = event["study"]
    description["places"] = places.number
    description["hardware"] = _hardware(places)
    if run.annotations.notes:
        description["notes"] = list(run.annotations.notes)
    if run.annotations.tags:
        description["tags"] = dict(run.annotations.tags)
    if sources := run.network_sources():
        description["networks"] = {source.pinned: network_description(source) for source in sources}
    run.runner.describe(description)
    if run.given_caps:
        description["caps"] = run.given_caps
    if not run.is_recorded:
        description["unrecorded"] = True
    return event


def _record_extension(run: StudyRun, recorder: Recorder) -> None:
    if run.extended is not None:
        recorder.record({**run.extended.event, "time": time.time()})


def _record_new_annotations(run: StudyRun, recorder: Recorder) -> None:
    """Records the notes and tags that a resumed study does not have yet."""
    new = run.annotations.beyond(run.progress)
    if new:
        recorder.record(study_annotated(new.notes, new.tags))


def _hardware(places: Places) -> Hardware:
    """The hardware that a study runs on, as its journal describes it."""
    found = hardware(places.resources)
    if places.mps:
        found["mps"] = all(places.mps.values())
    return found
