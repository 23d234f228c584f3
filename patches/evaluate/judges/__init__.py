"""What decides whether an answer refuses, complies or is toxic, and how often that is wrong."""
