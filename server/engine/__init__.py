"""Everything that imports vLLM: launch, engine client, KV connector, workers.

A prefix comes in front of a request in four steps: ``client`` adds placeholders and a ``claim`` in the front
end, ``scheduler_side`` says that they need no computing and makes a ``plan``, ``worker_side`` carries it out,
and ``client`` hides the prefix again.

=======================  ===========================================================================
``launch``               starts the server: vLLM's flags and ours
``front_end``            one process that answers HTTP, and how its parts are put together
``configuration``        what vLLM's engine and its HTTP server are configured with
``thread_turns``         threads compute, however busy the event loop is
``processes``            several of them on one socket
``options``              what a server is started with beside vLLM's flags
``cpu_defaults``         defaults for machines without a GPU
``support``              what is refused at start, because patches could not be served rightly
``address``              the socket that a server answers on
``releases``          what differs between releases of vLLM
``ending``            the end of a process
``start_errors``         what ends a start with one line
``children``             what each process of a server does first, and how it reports that it can't start
``logs``                 our log lines in vLLM's format
``mistakes``             one line in the log for a client's mistake
``line_writer``          a stream for log lines that never makes its writer wait
``line_pipe``            what reaches a standard stream past the log, as JSON
``tracing``              OpenTelemetry: our spans around vLLM's
``injection_spans``      spans of the writes of prefixes
``ready``                the block that says that a server is ready
``client``               the engine client: the selected patch goes in front of each request
``context_length``       what a prefix leaves of the model's context
``model_registry``       aliases in vLLM's list of models
``placeholder``          the token id that stands for prefix positions
``claim``                what a request tells the scheduler about its prefix
``connector``            the KV connector: scheduler side and worker side in one class for vLLM
``scheduler_side``       which tokens need no computing, and what to write where
``plan``                 the scheduler's orders to the workers for one step
``block_pins``           keeps blocks of chosen prefixes from being evicted
``worker_side``          writes prefixes into requests' blocks
``cache_writer``         the fastest way of writing that is right for these caches
``stores``               what a worker holds, a store for each kind of patch
``prefix_store``         the prefixes of one worker, in host memory and device slots
``device_slots``         device slots within a bound, least recently used out first
``vector_store``         the vectors of one worker, in host memory and in rows of the device's table
``relocation``           whether this model's keys can be moved to other positions
``delta_store``          the weight patches of one worker, of which one may be written into the model
``weight_places``        where a checkpoint's weights lie in the loaded model, and where they can't change
``engine_weights``       pauses the engine, has every worker write, and goes on
``worker``               vLLM's workers with hooks for vectors, as a mixin
``cpu_worker``           the worker with it on machines without a GPU
``gpu_worker``           the worker with it on GPUs
``steering_hooks``       where vectors act, and on which models they are right
``steering_plan``        the scheduler's half of steering: who is steered, and the hashes of answers' blocks
``steering_rows``        the worker's half: which token is steered by which vector
``steering_conditions``  whether a vector acts: scores beside the KV cache, decided in the forward pass
``steering_guard``       states that are not finite: found in the last layer, with what to clear of them
``steering_report``      what workers tell the scheduler side: outcomes, and requests that must not answer
``steering_selftest``    a forward pass at start that shows whether vectors act where they should
``withheld``             keeps back tokens of requests whose vector is not on the device
``worker_extension``     methods added to vLLM's workers
``worker_setup``         what a leading process makes of its workers before it serves
``rpc_workers``          the workers as the residency seam sees them
``stats``                counts of prefix tokens on their way to the metrics
=======================  ===========================================================================
"""
