"""Checkpoints: their files, the storage that holds them, and when they are written."""
