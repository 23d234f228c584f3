"""Orders of operators: who may give them, what they change, and the canaries that they start.

================  ========================================================================
``access``        who may give orders, and the record of everyone who tried
``keys``          the file of admin keys
``operator``      the orders: activate, follow, roll back, canary, remove
``uploads``       patch files that operators put into the folder
``canary_watch``  how the requests of a canary go, and the end that its rules put to it
``control``       what the flags about operators name, opened: keys, state, trust, address
``listener``      ``--admin-listen``: an address of its own for admin calls
================  ========================================================================
"""
