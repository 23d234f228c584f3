"""The servers that are measured, and the patches and adapters that they serve.

====================  ===================================================================
``launch``            their flags and environment, alike with and without patches
``processes``         starting them, waiting until they are ready, taking them down
``environment``       the machine and the versions that a record names
``fake``              a stand-in for both servers, without a model: rehearses a benchmark
``catalog_only``      the front end of the server alone, without an engine
``catalog_front``     starts it over a folder of links
``fleet_publisher``   the publisher of a fleet, and its orders
``fleet_replicas``    many servers of a fleet in one process, without engines
``front_ends``        whole servers whose engine core computes nothing
``instant_executor``  what vLLM loads there in place of a model
``processor_time``    what the processes of a server have computed
``adapters``          LoRA adapters and embeddings that clients send, to compare with
``patch_set``         many patches for one model
``random_patch``      patches with random K/V
``random_vector``     steering patches with random vectors
``random_adapter``    LoRA adapters with random weights
``makers``            runs the programs that make patches and adapters
====================  ===================================================================
"""
