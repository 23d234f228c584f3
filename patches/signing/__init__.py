"""Signatures of patches: keys, what is signed, the signature file, and the list of what was revoked.

Offline and by key: no certificate authority, no transparency log, no clock that must be right.

===============  ===================================================
``keys``         key pairs, and the folder of those that are trusted
``statement``    what a signature says
``signature``    the signature file beside a patch
``revocations``  the list of revoked patches
===============  ===================================================
"""
