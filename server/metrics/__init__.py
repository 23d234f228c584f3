"""Prometheus metrics, a module per subject; nothing here decides anything.

============  =======================================================
``patches``   requests, patches and files; holds all the others
``latency``   histograms for the hot path
``prefixes``  prefixes on their way into the KV cache
``tiers``     how much of each memory patches take
``control``   whether policy, audit log, state and trust are in order
``canaries``  a canary beside the version that it is to replace
============  =======================================================
"""
