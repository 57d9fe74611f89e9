"""Where MLflow records a study: tracking URIs, their checks, and the choice of one that was not given."""
