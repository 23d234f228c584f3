"""The policypatch server: HTTP surface, command line, live catalog, policy and metrics.

Everything that imports vLLM lives in ``server.engine``.
"""

__version__ = "0.1.0"
