"""Whose signature counts, and which versions are too old to serve."""
