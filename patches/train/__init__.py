"""Training a patch: a soft prefix on the frozen base model, first by SFT, then by DPO.

TRL's trainers take the same pairs, and a test holds the losses to theirs; they can't sample compositions, nor
keep a patch silent on other prompts, so the loop is our own.

===============  ==================================================================
``config``       how a patch is trained: one dataclass
``inputs``       what a run begins with, loaded and checked
``data``         from pairs to token ids
``benign_rows``  where a patch must stay silent, with the unpatched model's answers
``initial``      what a prefix starts as
``learned``      what the loop learns, as a protocol: values at work in a model
``soft_prefix``  one of it: the prefix that becomes a patch
``vectors``      another: the vectors of a steering patch
``weights``      a third: some of the model's own weights, for a weight patch
``baselines``    the others: what patches are compared with
``contexts``     which other patches a step is taken among
``forward``      runs the frozen model behind a prefix
``sft``          a loss: the answers' negative log-likelihood
``dpo``          a loss: preference of the chosen answers
``benign``       a loss: divergence from the model without the patch
``stages``       from rows to losses, for each stage
``reference``    what DPO is held to, computed once
``schedule``     which rows a step takes, and its learning rate
``loop``         takes the steps; owns what changes
``ranks``        the processes that train together
``checkpoint``   a run on disk: all that the next step depends on
``identity``     what a run is; the origin in the manifest
``export``       from learned values to a patch
``log``          what a run leaves to read
``run``          from inputs through the stages to a patch
===============  ==================================================================
"""
