"""The built-in measures, a module for each suite; ``measure`` finds them by name.

===============  =========================================
``measure``      what a measure is, and the table of all
``harm``         harmful requests that are complied with
``overrefusal``  harmless requests that are refused
``toxicity``     toxic continuations
``bias``         gendered words, and stereotyped sentences
``fluency``      perplexity, and repetition
``capability``   multiple-choice questions
``latency``      times of single requests
===============  =========================================
"""
