"""Where items come from: packages with pinned content, files that lie here, and what training has seen.

=============  =============================================================
``items``      the prompts, texts and choices, and which of them a run takes
``sources``    named data sets: from files to items
``packages``   files out of PyPI and npm packages, fetched once
``pinned``     which files those are, with the SHA-256 of each
``exclusion``  prompts that training saw
=============  =============================================================
"""
