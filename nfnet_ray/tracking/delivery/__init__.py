"""Carries a study's journal to MLflow: what is pending, how it is written, and what is tried again."""
