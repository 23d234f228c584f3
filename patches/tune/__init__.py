"""Ordinary instruction tuning of a whole model by TRL, with critical weights held where that is asked for.

=============  =====================================================================
``config``     how it is tuned: one dataclass
``rows``       from a file of answered prompts to token ids
``run``        TRL's trainer, its optimizer protected; the model's folder afterwards
=============  =====================================================================
"""
