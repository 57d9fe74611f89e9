"""Timings, as ratios measured in one run. Each file is a program that needs torch alone; results are csv files here."""
