"""Determines where MLflow records a study: tracking URIs, their checks, and the default one."""
