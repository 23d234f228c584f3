"""What ``policypatch patches`` prints for people. Pure: from the server's JSON to lines."""

from typing import Any

from server.commands.figures import columns


def describe_list(document: dict[str, Any]) -> list[str]:
    """Describe patches, one version a line, and what was refused."""
    heads = ("patch", "state", "in flight", "digest")
    rows = [
        (f"{card['name']}@{v['version']}", v["state"], str(v["in_flight"]), v["digest"][:19])
        for card in document["data"]
        for v in card["versions"]
    ]
    lines = columns([heads, *rows]) if rows else ["no patch is loaded"]
    lines += [f"refused: {f['file']} ({f['reason']}): {f['message']}" for f in document["failures"]]
    return lines


def describe_record(document: dict[str, Any]) -> list[str]:
    """Describe what a name means, what a rollback would go back to, and who did what."""
    pinned = ", pinned" if document["is_pinned"] else ""
    lines = [f"{document['name']}: {_version(document['active'])} is active{pinned}"]
    lines += [f"  a rollback goes back to {_version(target)}" for target in document["previous"][:1]]
    if (canary := document["canary"]) is not None:
        lines.append(f"  canary: {_version(canary)} for {canary['share']:.1%} by {canary['key']}")
    rows = [
        (f"  {_second(h['at'])}", h["action"], h["by"], _version(h["active"]), h["reason"] or "")
        for h in document["history"]
    ]
    return [*lines, *columns([("  when", "what", "by", "active then", "why"), *rows])]


def describe_removal(document: dict[str, Any]) -> list[str]:
    """Describe what a removal left."""
    number, is_forced = document["num_in_flight"], document["is_forced"]
    requests = f"{number} request{'s' * (number != 1)}"
    ending = f"ended {requests}" if is_forced else f"{requests} may still finish"
    return [f"{document['name']}: removed; {ending}; {_version(document['active'])} is active"]


def _second(at: str) -> str:
    """Return a time of the history without the fraction of its second."""
    return f"{at.partition('.')[0].removesuffix('Z')}Z"


def _version(target: dict[str, Any] | None) -> str:
    return target["version"] if target is not None else "no version"


def describe_preview(preview: dict[str, Any]) -> list[str]:
    """Return what an activation would do, line by line."""
    target = preview["would_activate"]
    lines = [f"{preview['name']}@{target['version']} would be active ({target['digest']})"]
    lines += [f"  would not be served, made for other weights: {one}" for one in preview["mismatched"]]
    lines += [f"  would answer, though made for other weights: {one}" for one in preview["kept"]]
    lines += [f"  would be REFUSED: the policy needs {one}" for one in preview["refused_for"]]
    return lines
