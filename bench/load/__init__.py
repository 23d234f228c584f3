"""The client: what is asked, how long it took, and the arms that are compared."""
