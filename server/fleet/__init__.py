"""Many servers, one signed catalog: what a fleet serves, how that is published, and how a server follows it.

==============  ====================================================================================
``document``    one revision of the catalog, as a file
``changes``     from one revision to the next, as pure functions
``roles``       who signs: keys and roles of The Update Framework
``store``       where a catalog lies: a folder or a bucket
``publisher``   writes revisions
``reader``      reads them, and trusts nothing that is not signed
``staging``     brings a revision's files and contents here, before it holds
``syncer``      follows the catalog: lets each revision hold in one step
==============  ====================================================================================
"""
