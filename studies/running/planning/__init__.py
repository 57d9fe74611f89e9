"""What --plan prints: the trials, what they cost, and which differences they can tell."""
