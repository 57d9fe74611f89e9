"""The cost of a study: its arithmetic, its measured pace, forecasts, the paid time, and the caps on it."""
