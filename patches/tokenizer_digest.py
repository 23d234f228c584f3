"""The digest of a tokenizer: its vocabulary, merges and special tokens, not its chat template.

Definition. SHA-256 over the canonical JSON of ``{"merges": […], "special": […], "vocabulary": …}``:

- ``vocabulary``: an object of token to id, added tokens included; for a vocabulary with scores (Unigram), a
  list of ``[token, score]`` in order of the id, then an object of the added tokens.
- ``merges``: a list of ``[left, right]`` in order of rank; empty for other kinds.
- ``special``: the added tokens marked special, as ``[token, id]`` in order of the id.

It is read from ``tokenizer.json``; both ways in which that file writes merges give the same. A folder that
has only older forms (``vocab.json`` with ``merges.txt``, SentencePiece, tekken) has the digest of the names
and bytes of those files, since converting them would depend on what is installed. A folder without any
tokenizer has the digest of an empty vocabulary.

Limits. Normalisation and pre-tokenization rules are not covered.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from patches.canonical import JsonValue, canonical_json
from patches.errors import ModelUnusable

_FILE = "tokenizer.json"
#: Files by which a folder without ``tokenizer.json`` shows that it has a tokenizer.
_OTHER_FILES = (
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "tiktoken.model",
)


def tokenizer_digest(folder: Path) -> str:
    """Compute the digest of the tokenizer in a folder.

    Raises:
        ModelUnusable: Its files can't be read.
    """
    path = folder / _FILE
    if path.is_file():
        try:
            return _digest_of_document(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelUnusable(f"tokenizer: {path} can't be read: {error!r}") from None
    others = [folder / name for name in _OTHER_FILES if (folder / name).is_file()]
    if not others:
        return _digest_of_document({})
    state = hashlib.sha256()
    for other in sorted(others):
        state.update(canonical_json({"file": other.name, "num_bytes": other.stat().st_size}).encode("utf-8"))
        state.update(other.read_bytes())
    return "sha256:" + state.hexdigest()


def _digest_of_document(document: dict[str, Any]) -> str:
    model = document.get("model") or {}
    added = document.get("added_tokens") or []
    added_ids = {token["content"]: int(token["id"]) for token in added}
    vocabulary: JsonValue = model.get("vocab") or {}
    has_scores = isinstance(vocabulary, list)
    vocabulary = [*vocabulary, added_ids] if has_scores else {**vocabulary, **added_ids}
    merges = [m.split(" ") if isinstance(m, str) else m for m in model.get("merges") or []]
    special = [[token["content"], int(token["id"])] for token in added if token.get("special")]
    canonical = canonical_json(
        {
            "vocabulary": vocabulary,
            "merges": merges,
            "special": sorted(special, key=lambda pair: (pair[1], pair[0])),
        }
    )
    return "sha256:" + hashlib.sha256(canonical.encode("utf-8")).hexdigest()
