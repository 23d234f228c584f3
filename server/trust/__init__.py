"""Whose signature counts, and which versions are too old to serve.

====================  =================================================================
``trust``             which patch files are accepted: signed, not revoked, no downgrade
``minimum_versions``  the lowest version of each name, as signed statements said
``audit``             adds the signer to events about a patch
====================  =================================================================
"""
