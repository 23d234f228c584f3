"""Subcommands of ``policypatch``, a module each: ``DESCRIPTION``, ``EPILOG``, ``add_arguments``, ``run``."""
