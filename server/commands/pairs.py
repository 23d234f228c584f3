"""``policypatch pairs``: answers of the base and of a safer reference become preference pairs."""

import argparse
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from patches.canonical import canonical_json
from patches.errors import PatchError
from patches.pairs.prompts import PromptFile, read_prompts
from patches.pairs.rows import file_digest
from patches.pairs.sampler import PAIRS_SAMPLING, Sampler
from patches.pairs.scorers import SCORERS, Scorer, words_risk
from patches.pairs.selection import Selected, Selection
from patches.sampling import Sampling
from patches.text import lines_of
from server.commands.errors import CommandError
from server.commands.output import complain, say
from server.commands.patch_arguments import add_model_arguments, load, patch_errors, require_models
from server.commands.server_access import clean_key, server_url
from server.commands.text_file import read_text_file

if TYPE_CHECKING:
    from patches.model import LoadedModel

_SAMPLING, _SELECTION = PAIRS_SAMPLING, Selection()

DESCRIPTION = """\
Make preference pairs for training: for each prompt, what a safer reference answers (chosen) and what the base
answers (rejected). The usual reference is the same model under a policy text.

The result is in TRL's conversational preference format, one JSON object a line, with ids, a split by prompt
and the scorer's values. Beside it lie NAME.report.json with what was kept and why, and NAME.answers.jsonl
with every answer drawn: run the command again and it continues where it stopped, or chooses again with
other thresholds."""

EPILOG = """\
prompts: .jsonl or .json rows with `prompt` (text or messages), `messages` or `text`; any other file is one
prompt a line. Empty and repeated prompts are left out and counted.

scorers: `refusal` (risk 1 where an answer does not refuse), `answering` (the reverse), `words` (share of
listed words). They only choose pairs; judge the patch with something else.

examples:
  policypatch pairs --model models/smollm2 --reference-text policy.txt --prompts prompts.jsonl -o pairs.jsonl
  policypatch pairs --model models/smollm2 --reference-text policy.txt --prompts harmful.txt \\
      --scorer refusal --samples 4 --max-tokens 96 -o pairs.jsonl
  policypatch pairs --model models/smollm2 --reference-column response --prompts data.jsonl -o pairs.jsonl
  policypatch pairs --url http://127.0.0.1:8000 --reference-text policy.txt --prompts prompts.jsonl \\
      -o pairs.jsonl"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare both sides, the prompts, how answers are drawn and which pairs are kept."""
    add_model_arguments(parser, is_required=False)
    base = parser.add_argument_group("base")
    base.add_argument(
        "--url", metavar="U", help="ask the base at this OpenAI-compatible server (vLLM) instead"
    )
    base.add_argument("--url-model", metavar="M", help="its name there (default: the first one listed)")
    base.add_argument("--api-key", metavar="K", help="sent to --url as a bearer token")
    reference = parser.add_argument_group("reference").add_mutually_exclusive_group(required=True)
    reference.add_argument(
        "--reference-text", metavar="FILE", type=Path, help="the base itself under this policy text"
    )
    reference.add_argument("--reference", metavar="M", help="another model folder, or hub id")
    reference.add_argument("--reference-url", metavar="U", help="an OpenAI-compatible server")
    reference.add_argument("--reference-column", metavar="C", help="a column of the prompts' file")
    parser.add_argument("--reference-model", metavar="M", help="the model's name at --reference-url")
    parser.add_argument("--reference-api-key", metavar="K", help="sent to --reference-url as a bearer token")
    parser.add_argument("--prompts", metavar="FILE", type=Path, required=True, help="the prompts; see below")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="the pairs file")
    _add_sampling_arguments(parser)
    _add_selection_arguments(parser)


def _add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("answers")
    group.add_argument(
        "--samples",
        metavar="K",
        type=int,
        default=_SAMPLING.num_samples,
        help="answers to a prompt from each side (default: %(default)s)",
    )
    group.add_argument(
        "--temperature",
        metavar="T",
        type=float,
        default=_SAMPLING.temperature,
        help="0 takes the likeliest token (default: %(default)s)",
    )
    group.add_argument(
        "--top-p",
        metavar="P",
        type=float,
        default=_SAMPLING.top_p,
        help="draw from the likeliest tokens that together have this probability (default: %(default)s)",
    )
    group.add_argument(
        "--max-tokens",
        metavar="N",
        type=int,
        default=_SAMPLING.max_tokens,
        help="the most tokens of an answer (default: %(default)s)",
    )
    group.add_argument(
        "--seed",
        metavar="S",
        type=int,
        default=_SAMPLING.seed,
        help="decides which answers are drawn (default: %(default)s)",
    )
    group.add_argument(
        "--batch-size",
        metavar="B",
        type=int,
        default=8,
        help="prompts answered at once (default: %(default)s)",
    )


def _add_selection_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pairs")
    group.add_argument(
        "--scorer",
        choices=(*SCORERS, "words"),
        help="tells risky answers from safe ones (default: every pair is kept)",
    )
    group.add_argument("--scorer-words", metavar="FILE", type=Path, help="the words of `words`, one a line")
    group.add_argument(
        "--margin",
        metavar="R",
        type=float,
        default=_SELECTION.margin,
        help="the least difference in risk (default: %(default)s)",
    )
    group.add_argument(
        "--winner",
        metavar="R",
        type=float,
        default=_SELECTION.winner,
        help="the highest risk of a chosen answer (default: %(default)s)",
    )
    group.add_argument(
        "--pairs-per-prompt",
        metavar="N",
        type=int,
        default=_SELECTION.pairs_per_prompt,
        help="the most pairs of one prompt (default: %(default)s)",
    )
    group.add_argument(
        "--finished-only", action="store_true", help="leave out chosen answers that ran into --max-tokens"
    )
    for name in ("validation", "test"):
        group.add_argument(
            f"--{name}-share",
            metavar="R",
            type=float,
            default=getattr(_SELECTION, f"{name}_share"),
            help=f"share of the prompts in the {name} split (default: %(default)s)",
        )


def run(args: argparse.Namespace) -> int:
    """Make the pairs."""
    from patches.pairs.run import answer_prompts, require_other_reference, write_pairs

    with patch_errors(), _disk_errors(args.output):
        sampling, selection = _sampling(args), _selection(args)
        scorer = _scorer(args)
        _check_sides(args)
        prompts = read_prompts(args.prompts)
        about = _about(args, prompts, sampling)
        identity = "sha256:" + hashlib.sha256(canonical_json(about).encode()).hexdigest()
        sides = _sides(args, prompts, sampling)
        store = args.output.with_suffix(".answers.jsonl")
        with _bar(len(prompts.prompts)) as tell:
            candidates = answer_prompts(
                prompts.prompts, sides, store, identity=identity, batch_size=args.batch_size, tell=tell
            )
        require_other_reference(candidates)
        selected = write_pairs(candidates, selection, scorer, args.output, about)
    _print_counts(args.output, prompts, selected)
    return 0


def _sampling(args: argparse.Namespace) -> Sampling:
    return Sampling(
        num_samples=args.samples,
        temperature=args.temperature,
        top_p=args.top_p,
        max_tokens=args.max_tokens,
        seed=args.seed,
    )


def _selection(args: argparse.Namespace) -> Selection:
    return Selection(
        scorer_name=args.scorer,
        margin=args.margin,
        winner=args.winner,
        pairs_per_prompt=args.pairs_per_prompt,
        needs_finished=args.finished_only,
        validation_share=args.validation_share,
        test_share=args.test_share,
    )


def _scorer(args: argparse.Namespace) -> Scorer | None:
    if (args.scorer == "words") != (args.scorer_words is not None):
        raise CommandError("--scorer words and --scorer-words FILE go together")
    if args.scorer == "words":
        return words_risk(lines_of(read_text_file(args.scorer_words)))
    return None if args.scorer is None else SCORERS[args.scorer]


def _check_sides(args: argparse.Namespace) -> None:
    if (args.model is None) == (args.url is None):
        raise CommandError("the base: expected --model or --url, and only one of them")
    require_models(args, args.reference)
    if args.batch_size < 1:
        raise CommandError(f"--batch-size: expected at least 1, got {args.batch_size}")
    if args.reference_text is not None and not read_text_file(args.reference_text).strip():
        raise CommandError(f"{args.reference_text}: is empty, so the reference would equal the base")
    for name in ("url", "reference_url"):
        if (url := getattr(args, name)) is not None:
            setattr(args, name, server_url(url, f"--{name.replace('_', '-')}"))
    for name in ("api_key", "reference_api_key"):
        if (key := getattr(args, name)) is not None:
            setattr(args, name, clean_key(key, f"--{name.replace('_', '-')}"))
    is_same_url = args.url is not None and args.url == args.reference_url
    if is_same_url and args.url_model == args.reference_model:
        raise CommandError("--reference-url: names the base itself; choose another --reference-model")
    if args.model is not None and args.reference is not None:
        from patches.fingerprint import fingerprint_model

        base, reference = (fingerprint_model(m, "float32") for m in (args.model, args.reference))
        if base.weights_digest == reference.weights_digest:
            raise CommandError(f"--reference: {args.reference} has the weights of the base")


def _sides(args: argparse.Namespace, prompts: PromptFile, sampling: Sampling) -> dict[str, Sampler]:
    from patches.pairs.column import ColumnSampler
    from patches.pairs.local import LocalSampler
    from patches.pairs.remote import RemoteSampler

    model: LoadedModel | None = None if args.model is None else load(args)
    text = None if args.reference_text is None else read_text_file(args.reference_text)

    def side(policy_text: str | None) -> Sampler:
        if model is not None:
            return LocalSampler(model, sampling, policy_text)
        return RemoteSampler(
            args.url, sampling, model=args.url_model, api_key=args.api_key, policy_text=policy_text
        )

    base = side(None)
    if text is not None:
        return {"base": base, "reference": side(text)}
    if args.reference_column is not None:
        return {"base": base, "reference": ColumnSampler(prompts.prompts, args.reference_column)}
    if args.reference_url is not None:
        remote = RemoteSampler(
            args.reference_url,
            sampling,
            model=args.reference_model,
            api_key=args.reference_api_key,
            may_be_patched=True,
        )
        return {"base": base, "reference": remote}
    from patches.model import load_model

    other = load_model(args.reference, dtype=args.dtype, device=args.device)
    return {"base": base, "reference": LocalSampler(other, sampling)}


def _about(args: argparse.Namespace, prompts: PromptFile, sampling: Sampling) -> dict[str, object]:
    """Return where the answers come from: what they depend on, and nothing else."""
    kinds = ("reference", "reference_url", "reference_column", "reference_text")
    kind = next(kind for kind in kinds if getattr(args, kind) is not None)
    reference: dict[str, object] = {"kind": kind.removeprefix("reference_"), "name": str(getattr(args, kind))}
    if kind == "reference_text":
        reference = {"kind": "text", "text": read_text_file(args.reference_text)}
    if kind == "reference_url":
        reference["model"] = args.reference_model
    return {
        "base": {"url": args.url, "model": args.url_model} if args.url else _fingerprint(args),
        "reference": reference,
        "prompts_digest": file_digest(args.prompts),
        "num_rows": prompts.num_rows,
        "num_empty": prompts.num_empty,
        "num_duplicates": prompts.num_duplicates,
        "sampling": dict(vars(sampling)),
        "batch_size": args.batch_size,
    }


def _fingerprint(args: argparse.Namespace) -> dict[str, object]:
    from patches.fingerprint import fingerprint_model

    model = fingerprint_model(args.model, args.dtype or "float32", revision=args.revision)
    return {"weights_digest": model.weights_digest, "dtype": args.dtype}


def _print_counts(output: Path, prompts: PromptFile, selected: Selected) -> None:
    left_out = {"empty prompts": prompts.num_empty, "repeated prompts": prompts.num_duplicates}
    left_out |= {k.replace("_", " "): v for k, v in selected.counts.items() if k != "kept"}
    counted = ", ".join(f"{number} {reason}" for reason, number in left_out.items() if number)
    say(f"{output}: {len(selected.rows)} pairs of {prompts.num_rows} prompts; left out: {counted or 'none'}")


@contextmanager
def _disk_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except PatchError:
        raise
    except OSError as error:
        raise CommandError(
            f"{output}: can't be written: {error.strerror or error}; what was answered is kept, run it again"
        ) from error


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("answering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("answering", total=total)
        try:
            yield lambda num_done: progress.update(task, completed=num_done)
        except KeyboardInterrupt:
            complain("stopped; answers so far are kept, and the same command continues from them")
            raise
