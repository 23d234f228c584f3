"""Benchmarks: one module per question, each talking HTTP to servers that run in processes of their own.

Nothing imports this package, and nothing in it imports vLLM: what it measures is what a client sees. Three
modules need parts of the server: ``servers.catalog_only`` runs its front end without an engine,
``hostile.file_reader`` its intake of files, and ``servers.launch`` asks for the environment that it sets.
``bench/README.md`` says what each number means.

=============  ====================================================================
``run``        how a question is asked: rounds, sweeps, checks before measuring
``servers``    the servers that are measured, and the patches that they serve
``load``       the client: requests, their timing, the arms that are compared
``report``     records, figures made of them, tables and plots
``soak``       whether a server stays right under load, swaps and faults for long
``hostile``    damaged and hostile patch files
=============  ====================================================================
"""
