"""Cohorts: trials that share every batch, trained as one program over a leading axis, the lanes (experimental)."""
