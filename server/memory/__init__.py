"""Where the tensors of a patch lie: disk, host or device, and the seam to the workers that hold them.

================  ============================================================================
``residency``     the seam to the workers, and an implementation without any
``tiers``         which patches are in host memory and in device slots, and which have to wait
``payload``       what of a patch the workers hold
``weights``       the seam to the weights of the engine
``capacity``      what so many patches take, on paper
``patch_source``  the lowest tier: the file that a patch was read from
================  ============================================================================
"""
