"""Subcommands of ``policypatch``: one module each, with ``DESCRIPTION``, ``EPILOG``, ``add_arguments`` and ``run``."""
