"""``python -m studies``: commands that list, show, compare, annotate, delete and clean the studies of a storage."""
