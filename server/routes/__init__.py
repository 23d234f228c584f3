"""Routes that this project adds to vLLM's.

===============  =========================================================================
``patches``      ``GET /v1/patches``: what is loaded, what drains, what was refused
``ready``        ``GET /ready``: whether to send requests here
``admin``        orders about versions: activate, rollback, canary, history
``admin_files``  ``PUT`` and ``DELETE`` of patches
``admin_guard``  what all admin routes do first: ask for a key, and bound what is read
``admin_app``    all admin routes as one object, on the port of the models or on their own
===============  =========================================================================
"""
