"""Where images come from: folders, lists, Parquet, tars, CIFAR's binaries; each gives the same kind of source."""
