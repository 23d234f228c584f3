"""What a patch does, measured: suites, arms that are compared, judges with a known error, reports, a gate.

Nothing here imports vLLM. A model is spoken to through transformers (``transformers_subject``) or over HTTP
(``http_subject``); measures know neither, so both ways give the same figures.
"""
