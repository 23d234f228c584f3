"""The life of one request: what it may have, the lease that it holds, and what its answer says."""
