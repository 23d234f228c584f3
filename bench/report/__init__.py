"""Records of a run, figures made of them, tables and plots."""
