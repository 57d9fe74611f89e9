"""A data set on the disk: betons, their manifest, what is checked before they are trusted."""
