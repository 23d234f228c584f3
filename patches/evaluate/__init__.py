"""What a patch does, measured: suites, arms that are compared, judges with a known error, reports, a gate.

Nothing here imports vLLM. Measures don't know whether a subject runs in this process or answers over HTTP, so
both ways give the same figures.

=============  ==========================================================================
``suites``     what is asked, by which measure: YAML files
``suite``      reads and checks a suite
``data``       items: packages with pinned content, files, what training has seen
``subjects``   what the items are put to: a model in this process, a server over HTTP
``measures``   what is done with the items, and which figures result
``judges``     what a measure asks about an answer, and how often the judge is wrong
``arms``       the ways of answering that one run compares
``run``        tasks over arms, chunk by chunk
``log``        the log of a run, a line for each item under each arm
``session``    one evaluation from arms to summary
``gate``       thresholds, and a yes or no for a release
``report``     figures with intervals, tables, plots and pages
=============  ==========================================================================
"""
