"""Determines the conditions under which a trial was trained and evaluated, which must agree for comparisons."""
