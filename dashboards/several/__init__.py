"""One page of several studies: what they have in common, and what keeps them apart."""
