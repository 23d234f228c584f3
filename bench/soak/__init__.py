"""Whether a real server stays right under load, swaps and faults for long."""
