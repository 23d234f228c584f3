"""Several processes that answer requests from one catalog: one leads, the others follow.

The *leader* is a server as any other: it alone watches the folder, takes orders, asks the workers and decides
what serves. A *follower* answers requests by a copy of the leader's view and policy, which it is sent over a
local socket before the change holds. Which copy holds is one number in memory that all processes share
(``server.frontends.step``): the leader writes it once every follower has the next copy, and every decision
compares it. So a pointer moves in all processes at the same instant, and a process that was stopped, is slow
or lost its leader refuses requests instead of deciding by what was.

=================  =================================================================================
``step``           the shared numbers
``channel``        messages between two processes, and answers to them
``messages``       what is said in them
``leader``         the leader's side: ``server.catalog.processes.OtherProcesses`` over all followers
``follower``       the follower's side of the socket
``mirror``         what a follower knows: ``server.catalog.served.Served``
``relay``          routes that a follower lets the leader answer
=================  =================================================================================
"""
