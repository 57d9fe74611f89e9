"""Studies and trainings on Ray. The only room that imports Ray.

Its files run in different processes, which do not share memory. Every process can import every file; what follows
says where the code of each one runs.

The driver is the process of ``studies/*.py``. It holds the journal and the table, and ends all others.

- ``driver.py`` runs the trials of a study: those of one worker on Ray Tune, whose own loop is in this process too.
- ``searcher.py`` gives Tune's loop the next leg of a trial whenever a place is free, or those of a cohort as one.
- ``slots.py`` hands the legs of trials with several workers to slots, and a single training to one slot.
- ``trainer.py`` is such a slot: Ray Train's ``fit`` in a thread, restarted if its controller dies.
- ``gauge_export.py`` hands a study's gauges to Ray's metrics.
- ``follower.py`` reads what the workers of a leg say, records it and tells the person.
- ``connection/`` starts Ray or finds a cluster, checks its nodes, and runs functions on them.

A trial process is an actor that Tune starts for a trial of one worker.

- ``trial.py`` is the function that Tune calls there. The trial is trained in this process, which then runs the next
  trial.

The controller is an actor that Ray Train starts for each slot. It starts the workers, and restarts them.

- ``group_events.py`` tells the driver of workers that were lost, and asks them for a checkpoint before a resize.

The workers are processes that train, one for each share of the batch. Of a trial with one worker, the trial process
is the worker.

- ``worker.py`` trains, and says at last how it ended. One of a group then waits for the next leg.
- ``contexts.py`` is what the training loop knows of Ray: where it reports, and whether it has to stop.
- ``exit_rules.py`` decides whether a failure is tried again, and how a worker ends after a checkpoint.

Between these processes:

- ``messages/`` defines everything that they tell each other: the configuration of slots and of legs, notes, values,
  the final report.
- ``forms.py`` has the trials of a study agree on the form of a step, with its driver.
- ``mailbox.py`` carries notes and values, through the memory of the cluster's head.
- ``connection/ray_internals.py`` holds all that is used of Ray and is not its public API.

A study whose trials have one worker each, and one slot of two workers::

    driver ── Tune ──> trial process: trial.py, worker.py
    driver ── Train ──> controller: group_events.py ──> workers: worker.py
"""
