"""The text of --plan: the trials, their cost, and the differences that they can detect."""
