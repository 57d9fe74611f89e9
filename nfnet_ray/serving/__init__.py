"""A trained network as a classifier of image files: what MLflow loads and serves."""
