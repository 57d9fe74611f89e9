"""Under which conditions a trial was trained and evaluated: what has to be alike where trials are compared."""
