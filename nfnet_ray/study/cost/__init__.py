"""Computes the cost of a study: its arithmetic, the measured pace, forecasts, the paid time, and caps."""
