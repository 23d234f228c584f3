"""The policypatch server: HTTP surface, command line, live catalog, policy and metrics.

Its rooms, from the top floor down: a module imports from its own room and from those below, which
``tests/architecture`` holds it to.

=============  ===============================================================================
``cli``        the command line: finds the subcommand
``commands``   one module for each subcommand
``engine``     everything that imports vLLM; ``front_end`` puts the parts of a server together
``app``        adds us to vLLM's app
``routes``     ``/v1/patches`` and the admin routes
``request``    the life of one request
``frontends``  several processes that answer from one catalog
``fleet``      many servers that follow one signed catalog
``policy``     who may choose which patch
``admin``      orders of operators
``catalog``    the live catalog
``memory``     disk, host, device: where the K/V of a patch lies
``trust``      whose signature counts
``metrics``    Prometheus metrics
``versions``   what a name means; pure
``demo``       the demo model
``watcher``    looks at a file or folder again and again
``options``    what a server is started with, once: flags, their defaults, what they mean
``audit``      the audit log
``errors``     every error that a client sees, with its status and code
=============  ===============================================================================
"""

__version__ = "0.1.0"
