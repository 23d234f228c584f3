"""Whether a real server stays right under load, swaps and faults for long. ``__main__`` runs the parts.

==============  ======================================================================
``stage``       what the parts share
``server``      the server and its supervisor
``contents``    the patches, with their names and versions
``references``  what each content says to each prompt
``requests``    one request, and how it ended
``load``        as many streams as are asked for, one after the other
``watch``       the part `load`, and its control on plain vLLM
``memory``      the memory of the server's processes over time
``storm``       the part `storm`: a name that gets another meaning many times a second
``faults``      the part `faults`: what breaks around a server that lives
``deaths``      the part `deaths`: processes that are killed
``clock``       a time of day that can be set while a server runs
``report``      what was found, as records, as a table and as one JSON line
==============  ======================================================================
"""
