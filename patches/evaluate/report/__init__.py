"""From the rows of a run to figures with intervals, tables, plots and pages.

==============  ===================================================
``statistics``  figures over items, with bootstrap intervals
``summary``     from the rows of a run to its figures
``tables``      figures as plain cells
``plots``       figures as small panels of SVG
``pages``       ``results.json``, ``report.md`` and ``report.html``
==============  ===================================================
"""
