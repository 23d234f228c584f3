"""The life of one request: what it may have, the lease that it holds, and what its answer says.

A request passes ``middleware``, which asks ``decider`` for a decision; a route of vLLM's calls the engine
client, which asks ``gate`` for the same decision and takes a lease for each generation.

==================  ============================================================================
``middleware``      the place in the HTTP stack: around vLLM's routes, inside its authentication
``access_log``      around everything: the request's id, its trace, its line in the log
``exchange``        one HTTP exchange, as the outermost and the innermost middleware know it
``trace``           the seam to distributed tracing
``prompt_routes``   which routes can honour a patch
``refusal``         sends a refusal, in the shape that clients of the route know
``scope``           what is known about the current request
``body``            fields of the body that are wanted before its route reads it
``decider``         what each request gets, by the policy and what serves
``gate``            what the engine client asks about its request
``lease``           what keeps the tensors of a patch while requests use it
``meter``           what one generation takes: its tokens and its times
``answer_headers``  what the headers of an answer say of patches
``audit_event``     what the audit log says about one request
==================  ============================================================================
"""
