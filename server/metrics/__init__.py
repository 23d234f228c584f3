"""Prometheus metrics, a module per subject; nothing here decides anything."""
