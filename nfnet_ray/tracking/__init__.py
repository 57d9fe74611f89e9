"""What happened in a study, kept for good, and shown in MLflow.

The journal (:mod:`nfnet_ray.tracking.events`) is the truth: one JSON line for each thing that happened.
MLflow is a view of it: :class:`nfnet_ray.tracking.sink.MLflowSink` reads the journal through a cursor
(:class:`nfnet_ray.tracking.spool.Spool`) and writes what the server has not acknowledged yet. A server
that goes away costs nothing but the time until it is back.

Importing this package does not import mlflow.
"""
