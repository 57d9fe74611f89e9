"""The form of a step: the layout of its activations and how it is compiled, which change its time and its last bits.

Also the graphs that were captured in a form, which the next run of the process may replay.
"""
