"""Chooses the points that a study tries: a grid, evenly spread points, or the proposals of a model of the results.

Proposal number j is a function of the space, the study's key, j, and the results of earlier points. It does not depend
on a clock, a process or a global random state, so a study that was killed and resumed makes the same proposals.

* :mod:`~nfnet_ray.study.search.searcher`: the searchers by name.
* :mod:`~nfnet_ray.study.search.upcoming`: the trials that a running study adds next.
"""
