"""Whom an evaluation asks: a model in this process, or a server over HTTP."""
