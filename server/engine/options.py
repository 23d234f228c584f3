"""What ``policypatch serve`` was asked for beside vLLM's flags."""

from dataclasses import dataclass, field
from pathlib import Path

from server.admin.control import ControlOptions
from server.memory.options import TierOptions
from server.policy.file import PolicyFile
from server.policy.rules import Policy


@dataclass(frozen=True)
class ServeOptions:
    """What ``policypatch serve`` adds to ``vllm serve``."""

    model: str
    patches: Path
    policy: Policy
    #: Where the policy was read from, and what it held; ``None`` where flags say it.
    policy_file: tuple[Path, PolicyFile] | None = None
    audit_log: Path | None = None
    control: ControlOptions = field(default_factory=ControlOptions)
    tiers: TierOptions = field(default_factory=TierOptions)
    #: ``prepared``, or ``joined`` where the server may also join what no composition was prepared for.
    composition: str = "prepared"
