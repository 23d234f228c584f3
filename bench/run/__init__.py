"""How a question is asked: its command line, its rounds, and the checks before anything is timed.

=================  ==============================================================================
``question``       the command line of a question, the folder of a run, and how a run ends
``rounds``         arms that take turns, cell by cell
``correctness``    what answers must be before anything is timed, and while it is
``arm_servers``    the servers that arms need, all up at the same time
``sweep``          cells along an axis that take turns
``patch_sweep``    sweeps over many patches: the servers, the requests, the check of every answer
``side_by_side``   one server, asked everything under a patch and with the policy as text
``device_timing``  one sample of what runs in this process, with cold caches
``reader``         a model in this process that reads prompts behind prefixes
=================  ==============================================================================
"""
