"""A network of one's own, which lives outside this repository and is named by an import path.

``model.name = "my_net:build"`` is the function ``build`` (or the class) of the module ``my_net``. ``source`` finds its
files and says what identifies them, ``build`` imports and calls it, ``cost`` measures what is known of other networks.
Only ``build`` and ``cost`` need torch, and only they run the network's code: a report of somebody's study does not.
"""
