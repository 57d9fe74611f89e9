"""Checkpoints: what they hold, where they are kept, when they are written."""
