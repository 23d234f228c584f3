"""Serve a model beside a real Prometheus and Alertmanager, with some traffic: `make watch`.

    python -m tools.watch --model MODEL [--patches examples/patches] [--answers FILE --seconds 120]

With ``--answers`` an operator gives orders meanwhile, and a forged file appears; at the end, what every query
of every dashboard returned is written to the file, for tools/dashboards/draw.mjs.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from patches.headers import PATCH_HEADER
from tools.debian_programs import ProgramsMissing, programs
from tools.watch.answers import write_answers
from tools.watch.processes import MODEL_NAME, DemoServer, Watch, WatchFailed
from tools.watch.story import Story
from tools.watch.traffic import Traffic

#: Between two lines on what Prometheus sees.
_REPORT_S = 15.0
_REPORT = {
    "requests/s": "sum(rate(policy_patch_requests_total[30s]))",
    "first token p95 s": "histogram_quantile(0.95, sum by (le) (rate("
    "policy_patch_time_to_first_token_seconds_bucket[30s])))",
    "alerts": 'count(ALERTS{alertstate="firing"}) or vector(0)',
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.watch", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="the model to serve")
    parser.add_argument("--patches", type=Path, default=Path("examples/patches"), metavar="DIR")
    parser.add_argument("--port", type=int, default=8000, help="of the server")
    parser.add_argument("--prometheus-port", type=int, default=9090)
    parser.add_argument("--alertmanager-port", type=int, default=9093)
    parser.add_argument("--seconds", type=float, default=None, metavar="S", help="end after this")
    parser.add_argument("--answers", type=Path, default=None, metavar="FILE", help="see above")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run until the time is over, or until it is interrupted; 1 where something did not start."""
    args = parser().parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="policypatch-watch-") as name:
            _watch(args, Path(name))
    except KeyboardInterrupt:
        return 130
    except (ProgramsMissing, WatchFailed) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _watch(args: argparse.Namespace, folder: Path) -> None:
    found = programs()
    story = Story(args.patches, folder)
    ports = (args.prometheus_port, args.alertmanager_port)
    with contextlib.ExitStack() as stack:
        print("starting the server; about a minute", flush=True)
        flags = ["--patches", str(story.folder), *story.flags()]
        server = stack.enter_context(DemoServer(args.model, args.port, flags, folder / "server.log"))
        server.wait_ready()
        watch = Watch(folder / "watch", found, [f"127.0.0.1:{args.port}"], interval="2s", ports=ports)
        stack.enter_context(watch)
        start = time.time()
        url = server.url
        stack.enter_context(Traffic(url, MODEL_NAME, story.names(), pause_s=0.2))
        print(banner(url, watch, story), flush=True)
        end = None if args.seconds is None else start + args.seconds
        while end is None or time.time() < end:
            if args.answers is not None:
                story.tell(url, (time.time() - start) / (args.seconds or 1))
            _report(watch)
            time.sleep(min(_REPORT_S, max(0.1, (end or float("inf")) - time.time())))
        if args.answers is not None:
            write_answers(args.answers, watch, story.choice(), start, time.time())
            print(args.answers)


def banner(url: str, watch: Watch, story: Story) -> str:
    """Return what a person can look at, and a request to try."""
    body = f'{{"model": "{MODEL_NAME}", "messages": [{{"role": "user", "content": "Name three colours."}}]}}'
    return (
        f"\nserver        {url}   (admin key: {story.key})\n"
        f"Prometheus    {watch.prometheus_url}/graph, /alerts, /rules\n"
        f"Alertmanager  {watch.alertmanager_url}/api/v2/alerts\n"
        "dashboards    deploy/grafana/dashboards/*.json, for a Grafana that asks this Prometheus\n"
        "to try\n"
        f"  curl -i {url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        f"    -H '{PATCH_HEADER}: {story.choice()['patch']}' -d '{body}'\n"
        "Ctrl-C ends everything.\n"
    )


def _report(watch: Watch) -> None:
    figures = []
    for name, expression in _REPORT.items():
        series = watch.now(expression)
        value = f"{float(series[0]['value'][1]):.3g}" if series else "-"
        figures.append(f"{name} {value}")
    print(time.strftime("%H:%M:%S"), ", ".join(figures), flush=True)


if __name__ == "__main__":
    sys.exit(main())
