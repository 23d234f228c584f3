"""Weight patches: from checkpoints to a file, one tensor at a time.

=============  ======================================================================
``linear``     which weights count, and where two checkpoints differ
``magnitude``  the k-th largest of more values than fit into memory
``collected``  changes of tensors on their way into a file
``hdr``        harm-direction removal: what tuning learned is trimmed and taken out
``fit``        whether a checkpoint has the tensors that a weight patch changes
``sides``      the words for which weights are chosen
``applied``    a weight patch at work in a transformers model
=============  ======================================================================
"""
