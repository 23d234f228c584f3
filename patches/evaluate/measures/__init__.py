"""The built-in measures, a module for each suite; ``measure`` finds them by name."""
