"""The form of a step: the layout of its activations and how it is compiled, which change its time and its last bits.

And what was captured in it, for the next run of the process.
"""
