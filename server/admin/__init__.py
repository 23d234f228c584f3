"""Orders of operators: who may give them, what they change, and the canaries that they start."""
