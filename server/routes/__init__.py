"""Routes that this project adds to vLLM's."""
