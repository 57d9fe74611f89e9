"""Runs a study on Ray that has passed all other checks, records it, and prints how it went."""
