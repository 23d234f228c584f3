"""Training a patch: a soft prefix on the frozen base model, first by SFT, then by DPO.

``sft``, ``dpo`` and ``benign`` are losses: pure functions of tensors. ``soft_prefix`` holds what is learned,
``forward`` runs the model behind it, ``stages`` turns rows into losses, ``loop`` takes the steps and owns
checkpoints and logs, ``run`` goes from files to a patch. TRL's trainers take the same pairs, and a test holds
the losses to theirs; they can't sample compositions, nor hold a patch to silence, so the loop is our own.
"""
