"""What ``policypatch policy check`` and ``explain`` find out and print."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from server.commands.errors import CommandError
from server.commands.output import complain, say, say_json
from server.commands.policy_file import read_policy
from server.commands.server_access import clean_key
from server.errors import PolicyPatchError
from server.policy.caller import ANYONE, Caller, Credentials, identify
from server.policy.connection import UNIX_PEER
from server.policy.decision import Asked, Decision, decide
from server.policy.errors import PolicyFileError
from server.policy.file import load_policy
from server.policy.offline import UNKNOWN_VERSION, FolderView, view_of_folder, view_of_names
from server.policy.rules import Policy, Rule
from server.versions.composition import SelectedPatch
from server.versions.selection import PatchRef, parse_policy_header, parse_wish, resolve_each
from server.versions.view import CatalogView, ServedPatch


def check(args: argparse.Namespace) -> int:
    """Check a file, and what it names where a folder is given."""
    problems: list[dict[str, Any]] = []
    notes: list[str] = []
    try:
        policy = load_policy(args.file).policy
    except OSError as error:
        raise CommandError(f"{args.file}: can't be read: {error.strerror or error}") from error
    except PolicyFileError as error:
        problems = [
            {"line": p.place.line, "column": p.place.column, "message": p.message} for p in error.problems
        ]
    else:
        if args.patches is not None:
            folder = _folder(args.patches)
            problems = [{"message": text} for text in _unanswerable(policy, folder.view)]
            notes = [*folder.refused, *_remarks(policy, folder.view)]
    if args.json:
        say_json({"is_valid": not problems, "problems": problems, "notes": notes})
        return int(bool(problems))
    for problem in problems:
        place = f":{problem['line']}:{problem['column']}" if "line" in problem else ""
        say(f"{args.file}{place}: {problem['message']}")
    for note in notes:
        complain(f"note: {note}")
    if not problems:
        say(f"{args.file}: good")
    return int(bool(problems))


def explain(args: argparse.Namespace) -> int:
    """Return what one request would get."""
    policy = read_policy(args.file, "FILE").policy
    caller, decision = _ask(args, policy)
    outcome = decision.outcome
    answer: dict[str, Any] = {
        "decision": "denied" if isinstance(outcome, PolicyPatchError) else "answered",
        "rule": decision.rule,
        "reason": decision.reason,
        "caller": {"key": caller.key, "tenant": caller.tenant},
        "are_patches_assumed": args.patches is None,
    }
    if isinstance(outcome, PolicyPatchError):
        answer |= {"status": outcome.status, "code": outcome.code, "param": outcome.param}
    else:
        answer |= {"status": 200, "source": outcome.source, **_describe(outcome.patch, args.patches is None)}
    if args.json:
        say_json(answer)
    else:
        _print(args, answer)
    return int(answer["decision"] == "denied")


def _ask(args: argparse.Namespace, policy: Policy) -> tuple[Caller, Decision]:
    caller = ANYONE
    try:
        caller = _caller(args, policy)
        header = parse_policy_header([args.header.encode()] if args.header is not None else [])
        alias = parse_wish(args.model_alias, "model") if args.model_alias is not None else None
    except PolicyPatchError as error:
        rule = getattr(error, "rule", None) or "grammar"
        return caller, Decision(error, rule, error.message)
    wished = [ref for wish in (header, alias) if isinstance(wish, tuple) for ref in wish]
    view = _folder(args.patches).view if args.patches is not None else view_of_names(policy, wished)
    return caller, decide(caller, Asked(header, alias), view, policy)


def _caller(args: argparse.Namespace, policy: Policy) -> Caller:
    if args.key_name is not None and args.key_name not in policy.key_rules:
        names = ", ".join(sorted(policy.key_rules)) or "none"
        raise CommandError(f"--key-name: no key of the file is called {args.key_name!r}; there are: {names}")
    if args.tenant is not None and policy.tenants is None:
        raise CommandError("--tenant: the policy has no tenants, so no header can name one")
    headers: list[tuple[bytes, bytes]] = []
    if args.key is not None:
        text, where = args.key, "--key"
        if text == "-":
            text, where = sys.stdin.buffer.readline().decode("utf-8", "replace"), "standard input"
        headers.append((b"authorization", b"Bearer " + clean_key(text, where).encode("ascii")))
    if args.tenant is not None and policy.tenants is not None:
        headers.append((policy.tenants.header, args.tenant.encode()))
    caller = identify(Credentials(headers, args.peer or _trusted_peer(policy)), policy)
    return Caller(args.key_name, caller.tenant) if args.key_name is not None else caller


def _trusted_peer(policy: Policy) -> str | None:
    if policy.tenants is None:
        return None
    trusted = policy.tenants.trusted
    return str(trusted.networks[0][0]) if trusted.networks else UNIX_PEER


def _folder(path: Path) -> FolderView:
    try:
        return view_of_folder(path)
    except OSError as error:
        raise CommandError(f"--patches: {path} can't be read: {error.strerror or error}") from error


def _describe(patch: SelectedPatch | None, is_assumed: bool) -> dict[str, str | None]:
    if patch is None:
        return {"patch": None, "digest": None}
    if is_assumed and isinstance(patch, ServedPatch):
        is_unknown = patch.version.partition("+")[0] == UNKNOWN_VERSION
        return {"patch": patch.name if is_unknown else patch.reference, "digest": None}
    return {"patch": patch.reference, "digest": patch.digest}


def _print(args: argparse.Namespace, answer: dict[str, Any]) -> None:
    known = [f"{kind} {name}" for kind, name in answer["caller"].items() if name is not None]
    asked = [f"header {args.header!r}"] if args.header is not None else []
    asked += [f"model alias {args.model_alias!r}"] if args.model_alias is not None else []
    if answer["decision"] == "denied":
        outcome = f"denied: {answer['status']} {answer['code']}"
    else:
        outcome = f"answered by {answer['patch'] or 'the base model'}"
        outcome += f" ({answer['digest']})" if answer["digest"] else ""
    say(f"caller    {', '.join(known) or 'neither listed key nor tenant'}")
    say(f"asks for  {', '.join(asked) or 'nothing'}")
    say(f"outcome   {outcome}")
    say(f"rule      {answer['rule']}")
    say(f"why       {answer['reason']}")
    if answer["are_patches_assumed"]:
        say("(every patch is taken to be loaded and every composition prepared; --patches DIR looks)")


def _callers(policy: Policy) -> Iterator[Caller]:
    """Return every kind of caller that the policy tells apart."""
    tenants: list[str | None] = [None]
    if policy.tenants is not None:
        tenants += list(policy.tenants.rules)
        if policy.tenants.others is not None:
            # No tenant of this name can be listed: the grammar of tenants has no space.
            tenants.append("any other")
        if policy.tenants.is_required:
            tenants.remove(None)
    for key in (None, *policy.key_rules):
        for tenant in tenants:
            yield Caller(key, tenant)


def _unanswerable(policy: Policy, view: CatalogView) -> Iterator[str]:
    """Name the callers whose requests would be answered with 503 where they name nothing."""
    said = set()
    for label, refs in policy.references():
        for ref in refs:
            try:
                resolve_each([ref], view, label)
            except PolicyPatchError as error:
                said.add(error.message)
                yield error.message
    for caller in _callers(policy):
        decision = decide(caller, Asked(), view, policy)
        if isinstance(decision.outcome, PolicyPatchError) and decision.outcome.status == 503:
            is_said = any(text in decision.reason for text in said)
            if not is_said:
                said.add(decision.reason)
                yield f"{decision.rule}: {decision.reason}"


def _remarks(policy: Policy, view: CatalogView) -> Iterator[str]:
    """Name what a rule allows but the server cannot give."""
    for rule in policy.rules():
        for entry in rule.allow.entries:
            try:
                resolve_each([entry], view, f"{rule.label}.allow")
            except PolicyPatchError as error:
                yield error.message
                continue
            if policy.required:
                yield from _unprepared(policy, view, rule, entry)


def _unprepared(policy: Policy, view: CatalogView, rule: Rule, entry: PatchRef) -> Iterator[str]:
    alone = Policy(required=policy.required, others=rule)
    decision = decide(ANYONE, Asked(header=(entry,)), view, alone)
    if isinstance(decision.outcome, PolicyPatchError) and decision.outcome.status == 400:
        yield f"{rule.label}.allow: '{entry}' is unavailable: {decision.outcome.message}"
