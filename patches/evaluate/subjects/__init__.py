"""What an evaluation asks: a model in this process, or a server over HTTP.

===========  ==============================================
``subject``  one arm of a model, as measures see it
``local``    in this process, with transformers
``remote``   a server over HTTP, through ``X-Policy-Patch``
===========  ==============================================
"""
