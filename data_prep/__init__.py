"""Images in, data set out: ``python -m data_prep --help``."""
