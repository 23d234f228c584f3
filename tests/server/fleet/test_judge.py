"""The fleet's judge, over a real Prometheus that scrapes the real metrics of three servers."""

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from prometheus_client import CollectorRegistry, start_http_server

from server.cli import main
from server.fleet import changes
from server.fleet.document import CanaryEntry, moment_of
from server.fleet.judge import FleetJudge, Judgement, progress_of
from server.fleet.prometheus import Prometheus, PrometheusError
from server.fleet.standing import ask_prometheus
from server.metrics.canaries import CanaryMetrics
from server.metrics.fleet import FleetMetrics
from server.versions.activation import Canary, CanaryRules, Target
from tests.server.fleet.conftest import Fleet
from tests.server.fleet.replica import ship
from tools.debian_programs import programs, working_folder
from tools.watch.targets import fill, targets

RULES = CanaryRules(max_error_rate=0.2, promote_after_s=1.0, min_requests=20)
DIGEST = "sha256:" + "0" * 64


@dataclass
class Server:
    """The metrics of one server, scraped under an address of its own."""

    arms: CanaryMetrics
    fleet: FleetMetrics

    def answer(self, name: str, arm: str, *, ok: int = 0, errors: int = 0, met: bool | None = None) -> None:
        for outcome, count in (("ok", ok), ("server_error", errors)):
            for _ in range(count):
                self.arms.finished(name, arm, outcome, 0.1, met)


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[list[Server], list[int]]]:
    canary = Canary(Target("1.1.0", DIGEST), 0.5, "request", CanaryRules(), "catalog", 0.0, was_pinned=True)
    names = ("few", "bad", "good", "slow", "odd")
    with ExitStack() as stack:
        made, ports = [], []
        for _ in range(3):
            registry = CollectorRegistry()
            server = Server(CanaryMetrics(registry), FleetMetrics(registry))
            list(server.arms.collect((name, canary) for name in names))
            http, thread = start_http_server(0, "127.0.0.1", registry)
            stack.callback(thread.join)
            stack.callback(http.server_close)
            stack.callback(http.shutdown)
            made.append(server)
            ports.append(http.server_address[1])
        yield made, ports


@pytest.fixture(scope="module")
def prometheus(
    servers: tuple[list[Server], list[int]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    targets = ", ".join(f"'127.0.0.1:{port}'" for port in servers[1])
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n"
        f"scrape_configs: [{{job_name: fleet, static_configs: [{{targets: [{targets}]}}]}}]\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    program = subprocess.Popen(
        [
            programs()["prometheus"],
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={listen}",
            "--log.level=error",
        ],
        cwd=working_folder(programs()["prometheus"]),
    )
    try:
        client = Prometheus(f"http://{listen}")
        until(lambda: len(ask(client, "up == 1")) == 3)
        # Two looks at every counter, of which increase() needs the first.
        time.sleep(0.5)
        yield client
    finally:
        program.terminate()
        program.wait()


def ask(client: Prometheus, query: str) -> list[object]:
    try:
        return list(client.ask(query))
    except PrometheusError:
        return []


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def begin(fleet: Fleet, name: str, rules: CanaryRules = RULES, *, ago_s: float = 60.0) -> CanaryEntry:
    """Publish two versions of a name, and a canary of the second that began a while ago."""
    ship(fleet, (name, "1.0.0"))
    canary = CanaryEntry("1.1.0", 0.5, "request", moment_of(time.time() - ago_s), rules)

    def change(document: object, names: object) -> object:
        # Added beside the active one, then put on trial.
        before = fleet.publisher().read().document
        assert before is not None
        added = changes.Added(name, "1.1.0", _entry(fleet, name))
        held = changes.with_versions(before.names, [added], activate=False)
        return before, changes.with_canary(held, name, canary)

    ship(fleet, (name, "1.1.0"), change=change)  # type: ignore[arg-type]
    return canary


def _entry(fleet: Fleet, name: str) -> changes.VersionEntry:
    from patches.format import decode_patch
    from tests.server.stand import patch_bytes

    data = patch_bytes(name, "1.1.0", fill=sum(map(ord, name + "1.1.0")) / 1024)
    return changes.VersionEntry(decode_patch(data).digest, f"patches/{name}-1.1.0.safetensors")


def judged(fleet: Fleet, counts: Prometheus) -> Judgement:
    (judgement,) = FleetJudge(fleet.publisher(), counts).look()
    return judgement


def meaning(fleet: Fleet, name: str) -> tuple[str, bool]:
    document = fleet.publisher().read().document
    assert document is not None
    now = document.names[name].meaning
    assert now is not None
    return now.active, now.canary is not None


def test_too_few_requests_are_not_judged(
    fleet: Fleet, servers: tuple[list[Server], list[int]], prometheus: Prometheus
) -> None:
    canary = begin(fleet, "few")
    for server in servers[0]:
        server.answer("few", "canary", errors=2)
    until(lambda: progress_of(prometheus, "few", canary).num_requests >= 4)
    assert judged(fleet, prometheus).verdict is None
    assert meaning(fleet, "few") == ("1.0.0", True)


def test_a_canary_is_aborted_by_what_no_single_server_could_judge(
    fleet: Fleet, servers: tuple[list[Server], list[int]], prometheus: Prometheus
) -> None:
    canary = begin(fleet, "bad")
    for server in servers[0]:
        server.answer("bad", "canary", ok=6, errors=6)
        server.answer("bad", "stable", ok=50)
    until(lambda: progress_of(prometheus, "bad", canary).num_requests >= 30)
    progress = progress_of(prometheus, "bad", canary)
    assert progress.error_rate == pytest.approx(0.5, abs=0.05)
    assert progress.given_ratio == pytest.approx(36 / 186, abs=0.05)
    judgement = judged(fleet, prometheus)
    assert judgement.verdict == "abort"
    assert judgement.reason is not None
    assert "failed, over 20.0%" in judgement.reason
    assert meaning(fleet, "bad") == ("1.0.0", False)
    document = fleet.publisher().read().document
    assert document is not None
    assert (document.revision, document.effective_at) == (judgement.revision, None)
    assert list(FleetJudge(fleet.publisher(), prometheus).look()) == []


def test_a_canary_that_kept_the_rules_becomes_the_version_of_all(
    fleet: Fleet, servers: tuple[list[Server], list[int]], prometheus: Prometheus
) -> None:
    canary = begin(fleet, "good")
    for server in servers[0]:
        server.answer("good", "canary", ok=12)
    until(lambda: progress_of(prometheus, "good", canary).num_requests >= 30)
    dry = next(FleetJudge(fleet.publisher(), prometheus, is_dry=True).look())
    assert dry.verdict == "promote"
    assert meaning(fleet, "good") == ("1.0.0", True)
    assert judged(fleet, prometheus).verdict == "promote"
    assert meaning(fleet, "good") == ("1.1.0", False)


def test_the_time_to_the_first_token_and_the_condition_are_judged_too(
    fleet: Fleet, servers: tuple[list[Server], list[int]], prometheus: Prometheus
) -> None:
    canary = begin(fleet, "slow", CanaryRules(max_first_token_s=0.01, min_requests=10))
    for server in servers[0]:
        server.answer("slow", "canary", ok=10)
    until(lambda: progress_of(prometheus, "slow", canary).num_requests >= 20)
    judgement = judged(fleet, prometheus)
    assert judgement.verdict == "abort"
    assert "to the first token" in str(judgement.reason)


def test_how_often_the_condition_is_met_is_judged(
    fleet: Fleet, servers: tuple[list[Server], list[int]], prometheus: Prometheus
) -> None:
    canary = begin(fleet, "odd", CanaryRules(max_condition_met=0.5, min_requests=10))
    for server in servers[0]:
        server.answer("odd", "canary", ok=10, met=True)
    until(lambda: progress_of(prometheus, "odd", canary).condition.num_decided >= 20)
    judgement = judged(fleet, prometheus)
    assert judgement.verdict == "abort"
    assert "the condition was met by 100.0%" in str(judgement.reason)


def test_the_requests_of_an_earlier_canary_do_not_count(
    fleet: Fleet, servers: tuple[list[Server], list[int]], prometheus: Prometheus
) -> None:
    old = begin(fleet, "bad", ago_s=600.0)
    for server in servers[0]:
        server.answer("bad", "canary", errors=12)
    until(lambda: progress_of(prometheus, "bad", old).num_requests >= 30)
    time.sleep(2.5)
    new = CanaryEntry("1.1.0", 0.5, "request", moment_of(time.time() - 2.0), RULES)
    assert progress_of(prometheus, "bad", new).num_requests == 0


def test_servers_of_another_fleet_can_be_left_out(
    fleet: Fleet, servers: tuple[list[Server], list[int]], prometheus: Prometheus
) -> None:
    canary = begin(fleet, "good")
    ports = servers[1]
    until(lambda: progress_of(prometheus, "good", canary).num_requests >= 30)
    one = Prometheus(prometheus._url, [f'instance="127.0.0.1:{ports[0]}"'])
    assert 5 <= progress_of(one, "good", canary).num_requests <= 15
    assert progress_of(Prometheus(prometheus._url, ['job="other"']), "good", canary).num_requests == 0
    order = ["fleet", "judge", str(fleet.folder.folder), "--once", "--prometheus", prometheus._url]
    assert main([*order, "--match", 'job="other"']) == 0
    assert meaning(fleet, "good") == ("1.0.0", True)
    with pytest.raises(SystemExit):
        main([*order, "--match", "job=other"])


def test_the_order_judges_once_and_says_what_it_saw(
    fleet: Fleet, prometheus: Prometheus, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(fleet, "calm")
    order = ["fleet", "judge", str(fleet.folder.folder), "--once", "--prometheus"]
    assert main([*order, prometheus._url]) == 0
    assert "calm 1.1.0: 0 requests so far, no verdict" in capsys.readouterr().out
    assert main([*order, "http://127.0.0.1:1"]) == 1
    assert "http://127.0.0.1:1" in capsys.readouterr().err


def test_prometheus_knows_where_servers_stand(
    servers: tuple[list[Server], list[int]], prometheus: Prometheus
) -> None:
    ends_s = time.time() + 500
    for server, revision in zip(servers[0], (7, 7, 6), strict=True):
        server.fleet.stands_at(revision, 7, ends_s, is_in_step=revision == 7)

    def revisions() -> list[int | None]:
        return sorted((one.revision or 0) for one in ask_prometheus(prometheus))

    until(lambda: revisions() == [6, 7, 7])
    first = ask_prometheus(prometheus)[0]
    assert first.heard == 7
    assert first.lease_seconds == pytest.approx(500, abs=30)


def test_the_panels_of_the_catalog_have_data(
    servers: tuple[list[Server], list[int]], prometheus: Prometheus
) -> None:
    ours = [target for target in targets("fleet") if "policy_patch_catalog" in target.expression]
    assert len(ours) == 3
    for server in servers[0]:
        server.fleet.stands_at(7, 7, time.time() + 500, is_in_step=True)
        server.fleet.failed("unreachable")

    def answers() -> list[list[object]]:
        filled = [
            fill(target.expression, {"instance": ".*"}, scrape_s=0.5, step_s=0.5, range_s=60)
            for target in ours
        ]
        return [ask(prometheus, expression) for expression in filled]

    def all_have_data() -> bool:
        servers[0][0].fleet.failed("unreachable")
        return all(answers())

    until(all_have_data)


def test_a_canary_that_an_operator_began_meanwhile_is_not_ended_for_another(fleet: Fleet) -> None:
    begin(fleet, "bad")

    class Slow:
        """Counts only errors, and an operator is faster than the last answer."""

        num_asked = 0

        def select(self, metric: str, *matchers: str) -> str:
            return metric

        def number(self, query: str, at_s: float | None = None) -> float | None:
            self.num_asked += 1
            if self.num_asked == 2:
                order = ["fleet", "abort", str(fleet.folder.folder), "bad"]
                assert main(order) == 0
                order = ["fleet", "canary", str(fleet.folder.folder), "bad", "1.1.0", "--at-once"]
                assert main(order) == 0
            return time.time() if "time()" in query else 100.0

    (judgement,) = FleetJudge(fleet.publisher(), Slow()).look()
    assert (judgement.verdict, judgement.revision) == ("abort", None)
    assert "another order came first" in judgement.line()
    assert meaning(fleet, "bad") == ("1.0.0", True)


def test_a_verdict_waits_for_what_is_still_to_come(fleet: Fleet) -> None:
    begin(fleet, "bad")
    ship(fleet, ("other", "1.0.0"), effective_at=moment_of(time.time() + 600))

    class Errors:
        def select(self, metric: str, *matchers: str) -> str:
            return metric

        def number(self, query: str, at_s: float | None = None) -> float | None:
            return time.time() if "time()" in query else 100.0

    (judgement,) = FleetJudge(fleet.publisher(), Errors()).look()
    assert judgement.verdict is None
    assert meaning(fleet, "bad") == ("1.0.0", True)
