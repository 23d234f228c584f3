"""Many servers, one signed catalog: what a fleet serves, how that is published, and how a server follows it.

================  ==================================================================================
``document``      one revision of the catalog, as a file
``changes``       from one revision to the next, as pure functions
``roles``         who signs: keys and roles of The Update Framework
``store``         where a catalog lies: a folder or a bucket
``publisher``     writes revisions
``orders``        carries one order out: reads what holds, changes it, publishes it
``rotation``      replaces keys, or signs for another year
``reader``        reads revisions, and trusts nothing that is not signed
``staging``       brings a revision's files and contents here, before it holds
``syncer``        follows the catalog: lets each revision hold in one step
``verification``  checks a whole store as a server does
``prometheus``    asks Prometheus for what all servers count
``judge``         ends canaries by that
``standing``      says where each server stands
================  ==================================================================================
"""
