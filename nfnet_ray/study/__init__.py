"""A question and its trials, their state, and how both are shown. Nothing here knows Ray."""
