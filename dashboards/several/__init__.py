"""Builds one page of several studies, with what they have in common and what separates them."""
