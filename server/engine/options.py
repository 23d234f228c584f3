"""What a server is started with beside vLLM's flags."""

from dataclasses import dataclass

from server.options import ServeFlags
from server.policy.file import PolicyFile
from server.policy.rules import Policy


@dataclass(frozen=True)
class ServeOptions:
    """Our flags, and the policy that they lead to."""

    flags: ServeFlags
    policy: Policy
    #: What the file of ``--policy`` held; ``None`` where flags say the policy.
    policy_file: PolicyFile | None = None
