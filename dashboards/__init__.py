"""Pages for people: a study's report, and the MLflow UI opened on the comparison of a study's trials."""
