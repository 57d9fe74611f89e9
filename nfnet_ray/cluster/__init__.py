"""Runs studies and trainings on Ray. This is the only package that imports Ray.

Its files run in different processes, which do not share memory. Every process can import every file. This list says in
which process the code of each file runs.

The driver is the process of ``studies/*.py``. It holds the journal and the table, and ends all others.

- ``driver.py`` runs the trials of a study: those of one worker on Ray Tune, whose own loop is in this process too.
- ``searcher.py`` gives Tune's loop the next leg of a trial whenever a place is free, or the legs of a cohort as one.
- ``slots.py`` assigns the legs of trials with several workers to slots, and a single training to one slot.
- ``trainer.py`` is a slot: Ray Train's ``fit`` in a thread, restarted if its controller dies.
- ``gauge_export.py`` exports the gauges of a study through Ray's metrics.
- ``follower.py`` reads the notes of a leg's workers, records them and informs the user.
- ``connection/`` starts Ray or finds a cluster, checks its nodes, and runs functions on them.

A trial process is an actor that Tune starts for a trial of one worker.

- ``trial.py`` is the function that Tune calls there. The trial is trained in this process, which then runs the next
  trial.

The controller is an actor that Ray Train starts for each slot. It starts the workers, and restarts them.

- ``group_events.py`` tells the driver of lost workers, and asks the workers for a checkpoint before a resize.

The workers are processes that train, one for each share of the batch. In a trial with one worker, the trial process is
the worker.

- ``worker.py`` trains, and reports at the end how the leg ended. A worker of a group then waits for the next leg.
- ``contexts.py`` connects the training loop to Ray: where it reports, and whether it has to stop.
- ``exit_rules.py`` decides whether a failure is tried again, and how a worker ends after a checkpoint.

Between these processes:

- ``messages/`` defines all messages: the configuration of slots and of legs, notes, values, the final report.
- ``forms.py`` lets the trials of a study and its driver agree on the form of a step.
- ``mailbox.py`` carries notes and values, through the memory of the cluster's head.
- ``connection/ray_internals.py`` contains every use of Ray that goes beyond its public API.

A study whose trials have one worker each, and one slot of two workers::

    driver ── Tune ──> trial process: trial.py, worker.py
    driver ── Train ──> controller: group_events.py ──> workers: worker.py
"""
