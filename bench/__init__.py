"""Benchmarks: one module for each question, and the rooms that questions share.

Most of them talk HTTP to servers that run in processes of their own: what they measure is what a client sees.
Only tests and tools import this package. Nothing in it imports vLLM, but for the executor that vLLM itself
loads for ``frontend``. Five modules need parts of the server: ``servers.catalog_only`` runs its front end
without an engine, ``servers.fleet_replicas`` what follows a fleet's catalog, ``servers.fleet_publisher`` what
writes one, ``hostile.file_reader`` its catalog, and ``servers.launch`` asks for the environment that it sets.
``bench/README.md`` says what the numbers mean.

===============  ============================================================================
``overhead``     what a patch costs, against plain vLLM and the policy as text
``fidelity``     how close answers under a patch are to those under its text
``compose``      how far joined compositions are from prepared ones; no server
``scale``        whether many different patches in one batch cost anything
``overflow``     what it costs when patches outnumber device slots, or exceed host memory
``swap``         what requests notice while the patch that they name is replaced
``memory``       what a patch takes of the KV cache and of memory
``start``        how long servers over many patches take to start, and some commands
``frontend``     what our front end adds to a request and to a token, apart from any model
``fleet``        how long until every server of a fleet serves what was published
``scrape``       what a scrape of the metrics costs
``catalog``      whether the front end stays fast with a thousand patches
``inject``       what writing prefixes into a KV cache costs; no server
``steering``     what a vector costs that acts on every request, and one that acts on none
``steer_layer``  what steering adds to a layer; no server
``cross_check``  whether another load generator finds the same figures
``files``        what becomes of damaged and hostile patch files; no server
``soak``         whether a server stays right under load, swaps and faults for long; a folder
``gpu_session``  everything that wants a GPU, in one command
``run``          how a question is asked: its command line, rounds, checks before measuring
``servers``      the servers that are measured, and the patches that they serve
``load``         the client: requests, their timing, the arms that are compared
``report``       records, figures made of them, tables and plots; ``bench report``
``hostile``      damaged and hostile patch files
``errors``       the errors that end a benchmark
===============  ============================================================================
"""
