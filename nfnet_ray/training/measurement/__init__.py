"""The cost of a run: seconds by phase, floating-point operations per second, memory and energy."""
