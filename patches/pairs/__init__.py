"""Preference pairs: what a safer reference answers (chosen) beside what the base answers (rejected).

``rows`` is the file's format, ``prompts`` what comes in, a ``sampler`` gets answers, ``scorers`` and
``selection`` decide which pairs are kept, ``run`` puts it together and can be interrupted.
"""
