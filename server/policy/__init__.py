"""Who may choose which patch: the policy file, the caller, the decision.

==============  ============================================================
``decision``    who gets which patch: one pure function
``remembered``  decisions that were made before
``terms``       what a caller may know of the patches and of its own default
``caller``      who is calling: the key and the tenant that a request shows
``connection``  who is at the other end of a connection
``keys``        which listed key a request holds
``rules``       what a policy says, as values
``file``        from a policy file to a policy, or to every mistake in it
``document``    the YAML that a policy file may use
``reader``      reads values out of a document, and collects mistakes
``errors``      what can be wrong with a policy file, with its place
``reach``       what of a policy could serve now, for the metrics
``watch``       keeps the policy in force equal to its file
``offline``     views for asking a policy without a server
==============  ============================================================
"""
