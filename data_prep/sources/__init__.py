"""Sources of images: folders, lists, Parquet, tars, CIFAR's binaries; all have the same interface."""
