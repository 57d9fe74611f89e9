"""Loads batches: orders the samples, decodes images in threads, and keeps or shares decoded images in memory."""
