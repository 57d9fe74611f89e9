"""What is shown and told of a study while it runs: the table, the time left, gauges for the cluster, the webhook."""
