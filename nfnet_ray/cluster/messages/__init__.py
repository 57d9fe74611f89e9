"""The messages between the processes of a run. Every kind of message is a type; none of them knows Ray.

``configs.py``: what the workers of a leg or of a slot are given, with the function that Ray runs.
``tune_reports.py``: what a Tune trial reports, through Tune, as plain dictionaries.
``notes.py``: what workers and Ray Train's controller tell the driver, through :mod:`nfnet_ray.cluster.mailbox`.
``register_values.py``: values that all processes of a run can read and set, in the same store.
"""
