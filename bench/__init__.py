"""Benchmarks: one module per question, each talking HTTP to servers that run in processes of their own.

Nothing imports this package, and it imports neither vLLM nor the server: what it measures is what a client
sees. ``bench/README.md`` says what each number means.
"""
