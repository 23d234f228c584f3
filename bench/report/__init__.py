"""Records of a run, the figures made of them, tables and plots. ``__main__`` makes them again from records.

===================  =========================================================================
``record``           a line for each measured cell, and one that says that a run was cut short
``figures``          medians, spreads, ratios of arms, goals
``arm_report``       the tables of arms
``sweep_axes``       what each sweep measures, and along which axis
``quiet``            the rounds that other work disturbed least
``sweep_report``     the tables and the plot of a sweep
``fidelity_report``  the table of fidelity
``compose_report``   the tables of composition
``plot``             the plot of arms
``report_files``     ``report.md`` and the plots in a folder
===================  =========================================================================
"""
