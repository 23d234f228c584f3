"""What a name means: pure functions and values, with no clock, no file and no lock.

===============  ====================================================================
``activation``   which version of a name is active, and how that came about
``view``         what is served at one instant
``revision``     where a server stands in its fleet's catalog
``as_of``        what names meant in an earlier revision of that
``selection``    from what a request says to the patch that answers it
``aliases``      the ``model`` alias ``<served name>:<patch>``
``composition``  several patches side by side, as a request names them
``canary``       which requests get a canary, and what its rules make of how they go
``canary_arms``  which version a bare name means for one request, while a canary runs
``sticky``       what a canary sticks to
===============  ====================================================================
"""
