"""What a study takes: its arithmetic, its pace as measured, forecasts, paid time and the caps on it."""
