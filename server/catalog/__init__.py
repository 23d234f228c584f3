"""The live catalog: what the folder holds, what the workers hold, and what each name means because of it.

================  ==============================================================================
``catalog``       takes what the folder and operators ask, one change at a time
``loading``       from a path to what serves, or to the reason why it does not
``publication``   what serves: follows from records, files and workers, and is shown in one step
``served``        what requests ask about what serves, as a protocol
``residents``     what the workers hold, which requests use it, and when it is dropped
``intake``        what a file must pass before it is loaded
``read_ahead``    reads files in threads before their turn comes
``checked_ahead`` checks files while the engine starts
``refusals``      why files are refused, and which of them are refused now
``records``       the record of each name, in memory
``state_folder``  the records, and the files that they need, on disk
``control``       records, trust and audit: what operators hold a catalog to
``order_queue``   operators' orders that wait, written together
``folder``        the watched folder of patch files
``folder_files``  the file operations of orders
``weights``       which weight patch is in force, and how that changes
``door``          where requests wait while it does
``trust_watch``   looks at keys and revocations at intervals
``processes``     the seam to the other processes of a server
``log``           what the logs say about changes
================  ==============================================================================
"""
