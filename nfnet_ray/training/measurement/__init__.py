"""What a run takes: seconds by phase, arithmetic per second, memory, energy."""
