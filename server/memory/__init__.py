"""Where the K/V of a patch lies: disk, host or device, and the seam to the workers that hold it."""
