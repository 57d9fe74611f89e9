"""Delivers a study's journal to MLflow: finds what is pending, writes it, and retries what failed."""
