"""What the parts of a soak share: the server, the contents in its folder, the references, the findings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from bench.load.exposition import metric, read_metrics
from bench.soak.contents import Content, Wanted, make_contents
from bench.soak.load import Choice, Load, Seen, eventually
from bench.soak.memory import Slope
from bench.soak.references import References
from bench.soak.report import Findings
from bench.soak.server import SoakServer, call_admin

#: Name that is swapped by calls, and name that is swapped by files.
HOT, FILE = "hot", "file"
#: Name that canaries, clocks and full disks are tried on.
TRIAL = "trial"
#: Names that servers are killed over, one for each kind of call.
KILLED = ("kill-put", "kill-delete", "kill-activate", "kill-canary")
#: Name that only a worker refuses: its prefix is larger than a device may hold.
LARGE = "large"
MIX_LENGTHS = (32, 48, 50, 7, 64, 33)
NUM_TOKENS = 48


@dataclass(frozen=True)
class Contents:
    """All contents of a run, by name."""

    by_name: dict[str, list[Content]]

    @property
    def mixed(self) -> list[Content]:
        """Those that the load asks for by exact name."""
        return [c for name, contents in self.by_name.items() if name.startswith("mix-") for c in contents]

    def __getitem__(self, name: str) -> list[Content]:
        return self.by_name[name]


def make_all(model: str, folder: Path, dtype: str, *, num_hot: int, num_large_tokens: int) -> Contents:
    """Make every content that the parts need, outside of the folder that is served.

    Raises:
        BenchError: they could not be made.
    """
    wanted = [Wanted(f"mix-{i}", "1.0.0", 1000 + i, length) for i, length in enumerate(MIX_LENGTHS)]
    wanted += [Wanted(HOT, f"1.0.{i}", 2000 + i, NUM_TOKENS) for i in range(num_hot)]
    wanted += [Wanted(FILE, "1.0.0", 2000 + i, NUM_TOKENS) for i in range(num_hot)]
    wanted += [Wanted(name, f"1.0.{i}", 3000 + i, NUM_TOKENS) for name in (TRIAL, *KILLED) for i in range(2)]
    wanted += [Wanted(LARGE, "1.0.0", 4000, NUM_TOKENS), Wanted(LARGE, "1.0.1", 4001, num_large_tokens)]
    by_name: dict[str, list[Content]] = {}
    for content in make_contents(model, folder, dtype, wanted):
        by_name.setdefault(content.name, []).append(content)
    return Contents(by_name)


@dataclass
class Stage:
    """One run."""

    session: aiohttp.ClientSession
    server: SoakServer
    contents: Contents
    references: References
    findings: Findings
    concurrency: int
    #: Whether a short form is wanted.
    is_short: bool = False
    seed: int = 0
    #: How the memory of plain vLLM's processes grows, where that was measured.
    control: dict[str, Slope] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The server's."""
        return self.server.url

    def choices(self, *bare: str) -> list[Choice]:
        """What a load asks for: the base model, mixed patches, and names whose meaning changes."""
        fixed = [Choice(None), *(Choice(c.name, c.digest) for c in self.contents.mixed)]
        return fixed + [Choice(name, is_bare=True) for name in bare for _ in range(len(fixed) if bare else 0)]

    def load(self, *bare: str, seen: Seen = lambda outcome: None) -> Load:
        """Prepare the load of this run; see ``choices`` and ``Load``."""
        return Load(
            self.session,
            self.url,
            self.references,
            self.choices(*bare),
            concurrency=self.concurrency,
            seed=self.seed,
            seen=seen,
        )

    async def metric(self, name: str, **labels: str) -> float:
        """Read one metric of the server."""
        return metric(await read_metrics(self.session, self.url), name, **labels)

    async def active_digest(self, name: str) -> str | None:
        """Ask what the bare name means."""
        async with self.session.get(f"{self.url}/v1/patches/{name}") as response:
            if response.status != 200:
                return None
            versions = (await response.json())["versions"]
        return next((v["digest"] for v in versions if v["state"] == "active"), None)

    async def settle(self, content: Content, timeout_s: float = 60.0) -> float | None:
        """Wait until a bare name means this content; returns how long that took."""

        async def holds() -> bool:
            return await self.active_digest(content.name) == content.digest

        return await eventually(holds, timeout_s, 0.02)

    async def idle(self, timeout_s: float = 60.0) -> dict[str, float] | None:
        """Wait until nothing is in flight; returns what is left, ``None`` for nothing."""
        left: dict[str, float] = {}

        async def holds() -> bool:
            text = await read_metrics(self.session, self.url)
            left.clear()
            for name in (
                "policy_patch_requests_running",
                "vllm:num_requests_running",
                "vllm:num_requests_waiting",
            ):
                if value := metric(text, name):
                    left[name] = value
            return not left

        return None if await eventually(holds, timeout_s) is not None else left

    async def resident(self) -> dict[str, str]:
        """Ask for digest -> state of everything that the catalog has on the workers."""
        async with self.session.get(f"{self.url}/v1/patches") as response:
            cards = (await response.json())["data"]
        return {v["digest"]: v["state"] for card in cards for v in card["versions"]}

    async def install(self, contents: Sequence[Content]) -> None:
        """Put contents into the folder, and wait until the server has them all."""
        for content in contents:
            self.server.install(content)
        digests = {content.digest for content in contents}

        async def holds() -> bool:
            return digests <= (await self.resident()).keys()

        if await eventually(holds, 120.0) is None:
            self.findings.note("start", "patches installed", f"missing after 120 s: {len(digests)}", False)

    async def activate(self, content: Content) -> bool:
        """Order that the bare name means this content; tells whether the server agreed."""
        path = f"{content.name}/activate"
        answer = await call_admin(self.session, self.server, "POST", path, body={"version": content.digest})
        return answer.is_ok
