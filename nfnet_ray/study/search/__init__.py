"""Which points a study asks about: all of a grid, evenly spread ones, or those that a model of the results proposes.

Proposal number j is a function of the space, of the study's key, of j, and of the results of earlier points: of no
clock, no process and no global random state. So a study that was killed proposes what it would have proposed.

* :mod:`~nfnet_ray.study.search.searcher`: the searchers by name.
* :mod:`~nfnet_ray.study.search.upcoming`: which trial a running study adds next.
"""
