"""Steering in a transformers model: vectors at work, row by row, and what makes them.

What a server computes is held to this: ``patches.kinds.steering`` says what the arithmetic is, these modules
carry it out in plain torch, differentiably.

====================  ===========================================================
``arithmetic``        one function: hidden states in, steered hidden states out
``network``           the decoder layers of the models that can be steered
``vector``            what acts on a request: values, form, condition
``batch``             a batch whose rows are steered, each by its own vector
``conditions``        scores of a batch's rows, and whether a condition is met
``hidden``            hidden states of texts, pooled
``directions``        from differences to directions: the forms of the literature
``from_pairs``        from preference pairs to a steering patch
``layer_list``        layers as people write them
``sweep``             which strength to take
``prompt_sets``       prompts on both sides of a condition, and what they leave behind
``condition_rows``    the same as rows that fit and rows that test
``probe_fit``         logistic regression, and its calibration
``roc``               the ROC curve, a threshold, intervals
``fit_condition``     which layers, which pool, which line
``condition_report``  what is known of a condition, to read
====================  ===========================================================
"""
