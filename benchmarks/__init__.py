"""Timings, as ratios measured in one run; ``gpu/`` is one command for a GPU. Results are csv files here.

Each file is a program that needs torch alone.
"""
