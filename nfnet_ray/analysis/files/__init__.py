"""Finds stored studies, and reads and writes the files of exported ones."""
