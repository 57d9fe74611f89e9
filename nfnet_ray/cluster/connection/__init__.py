"""How a program reaches Ray and what it finds there: addresses, a local Ray, nodes, resources, functions on all nodes.

Runs in the driver, except for the functions that ``nodes.py`` and ``parallel_map.py`` send to the nodes, and for
``warden.py``, which is a process of its own. Imports nothing from the rest of ``nfnet_ray/cluster``.
"""
