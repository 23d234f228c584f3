"""The client: what is asked, how long it took, and the arms that are compared.

==============  ============================================================================
``arms``        the ways to ask one model the same question, and the pairs that are compared
``workloads``   which prompts are sent, and in which order
``tokens``      token ids, asked from a running server
``client``      requests that are streamed, and stamped where the bytes arrive
``answers``     requests whose answers are read whole, with as little work as can be
``timing``      quantiles of a cell, and ratios within a round
``agreement``   how far two sets of answers agree
``loop_stops``  for how long an event loop did nothing for what was due
``exposition``  values out of a server's ``/metrics``
==============  ============================================================================
"""
