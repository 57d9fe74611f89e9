"""The form of a step: the layout of its activations and how it is compiled, which change its time and its last bits."""
