"""From the rows of a run to figures with intervals, tables, plots and pages."""
