"""Signatures of patches: keys, what is signed, the signature file, and the list of what was revoked.

Offline and by key: no certificate authority, no transparency log, no clock that must be right.
"""
