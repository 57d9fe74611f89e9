"""``python -m studies``: commands that list, show, compare, replay, annotate and delete studies."""
