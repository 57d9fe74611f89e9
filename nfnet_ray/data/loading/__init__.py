"""Samples in their order, decoded by threads into batches; images that stay in memory."""
