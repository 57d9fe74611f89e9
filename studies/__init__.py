"""One file per question. Each is a program: ``python studies/agc_sweep.py --help``."""
