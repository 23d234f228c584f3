"""What decides whether an answer refuses, complies or is toxic, and how often that is wrong.

===============  ===========================================================
``judge``        what a judge is, and the labels that it is held to
``judges``       the table of all; to add one, a row
``refusal``      does an answer refuse, or comply?
``toxicity``     is a text toxic?
``calibration``  how often a judge is wrong, on answers that people labelled
===============  ===========================================================
"""
