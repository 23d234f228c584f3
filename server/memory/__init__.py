"""Where the K/V of a patch lies: disk, host or device, and the seam to the workers that hold it.

================  ============================================================================
``residency``     the seam to the workers, and an implementation without any
``tiers``         which patches are in host memory and in device slots, and which have to wait
``patch_source``  the lowest tier: the file that a patch was read from
================  ============================================================================
"""
