"""Benchmarks of a training step."""
