"""What the sweeps measure: for each question its axis and its metrics, as tables and plots show them."""

from dataclasses import dataclass

from bench.report.figures import METRICS, Metric


@dataclass(frozen=True)
class Sweep:
    """A question whose cells lie along an axis, perhaps in several series.

    Attributes:
        title: what is asked, for the report's heading.
        axis: what ``setup.x`` counts or names.
        metrics: what each cell measures.
        note: one paragraph under the tables.
        quiet: metrics of which the quietest rounds are compared, too.
    """

    title: str
    axis: str
    metrics: tuple[Metric, ...]
    note: str
    quiet: tuple[str, ...] = ()


def _of(name: str, label: str, unit: str, scale: float, *path: str, more_is_better: bool = False) -> Metric:
    return Metric(name, label, unit, path or (name,), scale, more_is_better)


SWEEPS = {
    "catalog": Sweep(
        "how a catalog answers as it grows",
        "patches in the folder",
        (
            _of("start_s", "start-up", "s", 1),
            _of("start_cpu_s", "its processor time", "s", 1),
            _of("start_cpu_per_patch_s", "per patch", "ms", 1000),
            _of("list", "GET /v1/patches", "ms", 1000, "list_s", "p50"),
            _of("one", "GET /v1/patches/NAME", "ms", 1000, "one_s", "p50"),
            _of("metrics", "GET /metrics", "ms", 1000, "metrics_s", "p50"),
            _of("request", "patched request", "ms", 1000, "request_s", "p50"),
            _of("decide", "selection", "µs", 1e6, "decide_s", "p50"),
            _of("added", "one more file", "ms", 1000, "added_s"),
        ),
        "The server's front end with workers that answer at once: what the catalog costs, and nothing of the "
        "model. Start-up reads every file and checks its digest.",
    ),
    "start": Sweep(
        "how long starts take",
        "patches in the folder, or command",
        (
            _of("wall", "until it answers, or ends", "s", 1, "wall_s"),
            _of("processor", "its processor time", "s", 1, "processor_s"),
        ),
        "`serve`: a whole server whose engine core computes nothing; processor time is that of the process "
        "that answers HTTP. `command`: a process from start to end. Goals: 0.5 s more with "
        "1,000 patches than with none, `help` in 0.2 s, `inspect` in 0.5 s, `verify` no slower than "
        "`sha256sum`.",
        quiet=("wall", "processor"),
    ),
    "fleet": Sweep(
        "how a fleet follows its catalog",
        "order",
        (
            _of("last", "until the last replica", "s", 1, "last_s"),
            _of("apart", "replicas apart", "ms", 1000, "apart_s"),
            _of("order", "the order itself", "ms", 1000, "order_s"),
            _of("patches_fetched", "patches fetched", "", 1),
            _of("stored", "sent by the store", "KiB", 1 / 1024, "stored_bytes"),
        ),
        "`at once` and `rollback` from the end of the order on, `at an instant` from that instant on. Goals: "
        "3 s until the last of 50, 100 ms apart at an instant, nothing fetched for a rollback.",
    ),
    "scrape": Sweep(
        "what a scrape costs",
        "patches, all of them used",
        (
            _of("page", "the page", "MiB", 1 / (1 << 20), "page_bytes"),
            _of("sent", "as it is sent, gzipped", "MiB", 1 / (1 << 20), "sent_bytes"),
            _of("scrape", "GET /metrics", "ms", 1000, "scrape_s", "p50"),
            _of("stop", "longest stop of the event loop", "ms", 1000, "stop_s", "p50"),
            _of("quiet_stop", "without a scrape", "ms", 1000, "quiet_stop_s", "p50"),
            _of("request", "patched request", "ms", 1000, "request_s", "p50"),
            _of("request_p99", "its p99", "ms", 1000, "request_s", "p99"),
            _of("stormed", "under 100 scrapes a second", "ms", 1000, "stormed_request_s", "p50"),
            _of("stormed_p99", "its p99", "ms", 1000, "stormed_request_s", "p99"),
        ),
        "The server's front end without an engine, scraped as Prometheus does it. Goal for 1,000 patches: a "
        "stop of at most 50 ms, and at most 1 MiB sent.",
    ),
    "frontend": Sweep(
        "what the front end adds",
        "arm",
        (
            _of("api", "API process, a request", "µs", 1e6, "api_s"),
            _of("short", "a stream of one token", "µs", 1e6, "short_api_s"),
            _of("token", "each further token", "µs", 1e6, "token_api_s"),
            _of("core", "engine core, a request", "µs", 1e6, "core_s"),
            _of("core_token", "each further token there", "µs", 1e6, "token_core_s"),
            _of("rate", "saturation", "requests/s", 1, "requests_per_s", more_is_better=True),
            _of("p50", "p50 at half of it", "ms", 1000, "p50_s"),
            _of("p99", "p99 at half of it", "ms", 1000, "p99_s"),
            _of("bundle", "tokens in an event", "", 1, "tokens_per_event"),
        ),
        "Processor time, of whole servers whose engine core computes nothing. Goals: at most 1.03 of `plain` "
        "for a request, 1.01 for a token.",
        quiet=("api", "short", "token", "core", "core_token"),
    ),
    "scale": Sweep(
        "many different patches in one batch",
        "different patches",
        METRICS,
        "All cells keep the same number of requests in flight. Goal: throughput at least 0.98 of that of one "
        "patch.",
    ),
    "overflow": Sweep(
        "more patches than memory holds",
        "server",
        (
            *METRICS[1:],
            _of("ttft_p99", "TTFT p99", "ms", 1000, "ttft_s", "p99"),
            _of("num_device_loads", "copies to slots", "", 1),
            _of("num_disk_loads", "files read", "", 1),
        ),
        "Arrivals wait for no answer. Goal: median time to first token at most 1.1 times that of `resident`.",
    ),
    "steering": Sweep(
        "vectors that act on hidden states",
        "arm",
        (
            *METRICS,
            _of("processor", "processor, a token", "ms", 1000, "processor_s"),
            _of("num_steered_tokens", "steered tokens", "", 1),
        ),
        "Ratios are against `off`, a server without the kind. Goals for throughput: `idle` at least 0.99, "
        "`one` at least 0.97, `own` at least 0.98 of `one`, `unmet` at least 0.99 of `idle`.",
        quiet=("processor",),
    ),
    "swap": Sweep(
        "a patch replaced under load",
        "cell",
        (
            *METRICS,
            _of("ttft_max", "longest TTFT", "ms", 1000, "ttft_s", "maximum"),
            _of("takeover_s", "new content answers after", "ms", 1000),
        ),
        "No request failed and none was answered by the old content after the new one had answered: else "
        "there would be no figures. Goal: the new content answers within 1000 ms of its file's landing.",
    ),
    "cross_check": Sweep(
        "figures of two load generators",
        "generator",
        METRICS,
        "Ratios: what `vllm bench serve` reports, divided by what this package's client does, for the same "
        "load on the same server in the same round. A ratio near 1 is agreement.",
    ),
    "memory": Sweep(
        "what patches take",
        "requests in flight",
        (
            _of("num_blocks", "KV blocks at the peak", "", 1),
            _of("num_blocks_per_request", "per request", "", 1),
            _of("patch_bytes", "bytes of a patch", "KiB", 1 / 1024),
            _of("host_bytes", "host memory", "KiB", 1 / 1024),
            _of("device_bytes", "device slots", "KiB", 1 / 1024),
        ),
        "`base`: no patch. `one`: all under one patch. `own`: each under its own. `text`: as many tokens of "
        "text as a patch has, the same in all prompts.",
    ),
}
