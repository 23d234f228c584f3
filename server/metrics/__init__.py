"""Prometheus metrics, a module per subject; nothing here decides anything.

============  ===============================================================================
``patches``   requests, by patch; holds all the others
``callers``   requests, by the policy's rule for their caller
``use``       what the generations of a patch take: latencies and tokens
``use_text``  the same in words
``latency``   histograms for the hot path
``files``     patch files and the folder
``swaps``     changes of what serves, and the last orders
``canaries``  a canary beside the version that it is to replace
``prefixes``  prefixes on their way into the KV cache
``steering``  what vectors act on, and how often their conditions are met
``tiers``     how much of each memory patches take
``control``   whether policy, audit log, state and trust are in order
``fleet``     how far the catalog of the fleet is followed
``weights``   changes of the model's weights, and answers under others
``serving``   the server as a whole: what it is, since when, in how many processes
``scrape``    what is read at scrape time, rather than counted
``page``      the answer to a scraper
============  ===============================================================================
"""
