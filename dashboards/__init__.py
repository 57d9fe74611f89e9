"""Pages for people: a study's report, and the MLflow UI opened on its comparison."""
