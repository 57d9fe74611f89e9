"""Reading data sets that data_prep wrote: the FFCV format, the manifest, order, crops, batches."""
