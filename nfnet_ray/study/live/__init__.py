"""Displays a study while it runs: the live table, the time left, gauges for the cluster, and the webhook."""
