"""What a study's driver does beside training."""
