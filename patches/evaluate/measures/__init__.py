"""The built-in measures, one module for each suite; ``patches.evaluate.measure`` finds them by name."""
