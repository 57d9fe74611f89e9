"""A data set on disk: betons, their manifests, and the checks before they are trusted."""
