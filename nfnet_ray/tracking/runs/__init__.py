"""Computes the contents of a study's runs in MLflow from its journal: names, tags, texts, data sets, files."""
