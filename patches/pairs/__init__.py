"""Preference pairs: what a safer reference answers (chosen) beside what the base answers (rejected).

=============  =================================================================
``prompts``    the prompts of a file, checked and freed of repeated ones
``sampler``    what answers prompts: the protocol, and its answers
``local``      a sampler: a model in this process
``remote``     a sampler: a server over HTTP
``column``     a sampler: answers that stand in the prompts' file
``answers``    a file of greedy answers, from which an interrupted run continues
``scorers``    how far an answer is from what a policy wants
``selection``  which answers become a pair, and why others do not
``rows``       the pairs file, in TRL's format
``run``        both sides answer, then pairs are chosen; it can be interrupted
=============  =================================================================
"""
