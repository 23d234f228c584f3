"""Damaged and hostile patch files, and the reader that is given them.

===============  ====================================================================
``good_file``    the file that is damaged
``damage``       damage to its bytes, and files of other kinds
``forgeries``    content at fault under a digest that is right
``places``       links, pipes and folders in the place of a file
``mutations``    all families, and one file for each seed
``file_reader``  the catalog that files are shown to, in processes that may die of it
===============  ====================================================================
"""
