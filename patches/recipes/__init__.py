"""Recipes: how a patch is made, from prompts to a finished file, as one file of YAML.

``policypatch make`` follows them. The recipes of the ready patches, and the prompts that they bring, lie in
``examples/recipes``.

==============  ====================================================================
``recipe``      what a recipe says, as types; unknown keys are refused
``options``     the options of its training: the flags of ``policypatch train``
``sets``        its prompts: named sets out of pinned packages, files beside it
``jailbreaks``  wrappers around them, out of a package
``pinned``      which files of which packages those sets are
``neutral``     an answer without gendered words, by rules
``data``        the files that training reads, apart from what `pairs` makes
``plan``        from recipes to steps, in order
``run``         takes the steps, and leaves alone what is done
==============  ====================================================================
"""
