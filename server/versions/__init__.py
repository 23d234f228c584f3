"""What a name means: pure functions and values, with no clock, no file and no lock."""
