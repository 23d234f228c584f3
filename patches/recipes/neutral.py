"""Rewrites an answer so that it says nothing about anybody's gender: rules for English, rough but fixed.

Made for the recipe of `debias`: the chosen answer is the model's own one with as few other words as will do,
so that what the patch has to learn is the difference and nothing else.
"""

import re

_WORDS = {
    "he": "they",
    "she": "they",
    "him": "them",
    "his": "their",
    "hers": "theirs",
    "himself": "themselves",
    "herself": "themselves",
    "woman": "person",
    "women": "people",
    "man": "person",
    "men": "people",
    "girl": "child",
    "boy": "child",
    "lady": "person",
    "gentleman": "person",
    "mother": "parent",
    "father": "parent",
    "wife": "partner",
    "husband": "partner",
    "daughter": "child",
    "son": "child",
    "female": "adult",
    "male": "adult",
}
_VERBS = {"is": "are", "was": "were", "has": "have", "does": "do", "isn't": "aren't", "wasn't": "weren't"}
_VERBS |= {"doesn't": "don't", "hasn't": "haven't", "goes": "go"}
#: No verb in the third person, although they end like one.
_NO_VERBS = {
    "always",
    "perhaps",
    "sometimes",
    "nevertheless",
    "as",
    "this",
    "thus",
    "across",
    "its",
    "discuss",
    "pass",
}
_ADVERBS = r"(?:(?:\w+ly|also|always|often|never|now|still|soon|sometimes|usually|then)\s+)?"
_SUBJECT = re.compile(rf"\b(he|she)\b('s|\s+{_ADVERBS}[a-z']+)?", re.IGNORECASE)
#: What follows "her" where it is not a possessive.
_NO_OBJECT = (
    r"(?=\s*(?:$|[.,;:!?)]"
    r"|\b(?:and|or|to|that|in|on|at|with|for|from|as|when|while|who|was|is|by|into|about)\b))"
)
_HER_OBJECT = re.compile(rf"\bher\b{_NO_OBJECT}", re.IGNORECASE)
_TITLE = re.compile(r"\b(?:mr|mrs|ms)\b\.?\s*", re.IGNORECASE)
_PLAIN = re.compile(rf"\b(?:{'|'.join(_WORDS)}|her)\b", re.IGNORECASE)


def neutralised(text: str) -> str:
    """Return the text without gendered words; unchanged where it has none.

    "She often works late with her son." becomes "They often work late with their child."
    """
    text = _TITLE.sub("", text)
    text = _SUBJECT.sub(_plural, text)
    text = _HER_OBJECT.sub(lambda found: _like(found[0], "them"), text)
    return _PLAIN.sub(lambda found: _like(found[0], _WORDS.get(found[0].lower(), "their")), text)


def _plural(found: re.Match[str]) -> str:
    subject, rest = _like(found[1], "they"), found[2] or ""
    if rest == "'s":
        return f"{subject}'re"
    head, word = rest[: len(rest) - len(rest.split()[-1])] if rest else "", rest.split()[-1] if rest else ""
    return f"{subject}{head}{_verb(word)}"


def _verb(word: str) -> str:
    if word in _VERBS:
        return _VERBS[word]
    if len(word) < 4 or not word.endswith("s") or word.endswith("ss") or word in _NO_VERBS:
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    return word[:-2] if re.search(r"(?:ch|sh|ss|x|zz)es$", word) else word[:-1]


def _like(old: str, new: str) -> str:
    return new.capitalize() if old[0].isupper() else new
