"""What the runs of a study have in MLflow, each as a function of its journal: names, tags, texts, data sets, files."""
