"""The journal of a study, and its delivery to MLflow.

The journal (:mod:`nfnet_ray.tracking.journal`) is the source of truth: one JSON line for each event.
:class:`StudyState` is the state that its lines add up to. MLflow is a view of the journal:
:mod:`nfnet_ray.tracking.delivery` reads the journal through a cursor and delivers the events that the server has not
acknowledged yet. After an outage of the server it delivers the rest, and nothing is lost.

Importing this package does not import mlflow.
"""

from nfnet_ray.tracking.journal import JOURNAL_FILE, Journal, read_events
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.tracking.trial_progress import TrialProgress

__all__ = ["JOURNAL_FILE", "Journal", "StudyState", "TrialProgress", "read_events"]
