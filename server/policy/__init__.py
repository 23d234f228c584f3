"""Who may choose which patch: the policy file, the caller, the decision."""
