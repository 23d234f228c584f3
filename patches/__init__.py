"""The patch artifact and its life: format, manifest, fingerprint, compile, compose, PEFT.

Nothing here knows vLLM or the server. Importing the package imports neither torch nor transformers.
"""
