"""The servers that are measured, and the patches and adapters that they serve."""
