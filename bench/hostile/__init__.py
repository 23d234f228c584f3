"""Damaged and hostile patch files, and the reader that is given them."""
