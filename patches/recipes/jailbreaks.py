"""Jailbreak wrappers that recipes may put around prompts, harmful and harmless ones alike.

They are read out of their package when a recipe asks for them; none is part of this repository. The nine that
the suites of ``policypatch eval`` use are not among them, nor is any of which 6 % of the runs of four words
stand in one of those.
"""

import re

from patches.evaluate.data.packages import PackageFile, PackageFiles
from patches.evaluate.data.pinned import PYRIT

_FOLDER = "pyrit/datasets/jailbreak/templates"
#: One of each family of near copies.
_NAMED = {
    "aligned": "d3fa8d714cf9d3cf5ea4194339cc40bf88e56c1e78a06b115f83e5cfa9c84b41",
    "axies": "2911d82c2aa8cac8ea10ddc9b1e1a3a74353649ddea88b2c739d37a1802f33a2",
    "burple": "4a9c8f90f93a7c649887a821d06b46bdc5937b9b3e14ea0398a73d56aedd7b12",
    "chad_gpt": "9909db2f755737efff3391238ddc535024950a40eb1f5e0f00384a2fc103bb94",
    "cipher_chat": "6fe1165f862f89f74dd43961fe7d4694d7dff8cb1a595d54749e2746cee2c032",
    "confronting_personalities": "c2fd9db13eae18d8ed4281581d26ade11cd077a3f8f952194cdc0b04a4cd1e27",
    "delta_gpt": "ca66ddfec0f55eae4b21f6a682e70bcf57c84b44af315ce9839a3ebe735d98c8",
    "eva": "0220773cde416e2d23143b75de9c91ff30322a5d69854c799b7c61e6e1d9ffdc",
    "kevin": "7e8c1938e68376fb7c804bfc1a5bd58f5f3a3b3e428be8628e8f980f17575ca2",
    "moralizing_rant": "c365a8ff0e582fe22d39f3caa2afb269e06a62687b835581fce80d1aa3a71f56",
    "mr_blonde": "369e3b4d4a5246b0dd24130b76b52b739c0e75ca96e1554cdb2d8ead198359e8",
    "oppo": "5253f64c43b16f61ea39e8ecadfa59d654f4a5671ddf7679ceec07d45ebfc44e",
    "plinys_roleplay_emoji": "817e30d34f064acb2333f87fc0adbc0b710ec81b134e8687dc1df2a393ad433c",
    "table_nesting": "353a0b4d39d8b792039f749b86f98e7e620d4bc60baf6a3e4ab14c110918270e",
    "text_continuation_nesting": "fb7e658963ac918a79514dc24742106242c182a37af9293813e1607910155941",
}
#: Collected in the wild; by their numbers.
_COLLECTED = {
    "05c7b1cb279e16e3": "cc329a44f837cd754d9592bf1cfb671ee0401f1cd0cea1efa2d1ad72ccd3aac5",
    "084ea70adfbf8331": "fe8a1fc760b42c642bfe4f7ba2f5793c7c7d83fba116984528b768f306164d0f",
    "11a64f273fc60b35": "9e435c4e1b7e253b2d7419252fe62bc62cb9d2271d7c8b161af9a5e82c56dbc2",
    "1520470ec9cafa1b": "46c2f96dcc410168637f979d1c5e640317dc5879cfcabc11e63c3fdfdfa3641f",
    "1bdacba7456e697c": "70004ef6dd57316f096d86d3768ea04e32234d17a8386b3df89bf4431772d68e",
    "1f9d76a3d634a002": "51d3b1e00fac4149844504b0a9f3b8052d9974f63333026f092292661b63c7c9",
    "26aecc58a966c68f": "fdb8f092e5394baf8761eac9789d16b962b67ff843024a2ca3db78621bc05c5e",
    "307c4c43066ac312": "5f0f84ac08c8ea3957f9322a5f16abfa4e63b3800c6598e98889dbd6764a328a",
    "47caed6aa7b42106": "c0238721ac496ea6a93a69a1a4f0883c0a3207edd6463cf7b08b3649e7f98024",
    "76eca385597b71fc": "eec9d5770e4c3920404b672c288475291c1dca3b2add0ed01510e37c45dc0419",
    "7b78c2c26741a67f": "f93ed0e67e967731b050905b63b2ec8b7568bb50fcbd0959d3ac5c036545b5bc",
    "81781e7beac6c2fa": "b5d960422ecd8b962708892de40640e0c9f34bf1b312101db6faff6567a77ed9",
    "8240d6772705ad4b": "04b1b0ed683880b29b466c9f8c8bd0aff4749ec7e474ba55df9bef4f89f8b02d",
    "8ec7f736a06ba17c": "e4f3dec5d807ef72b9ccfeb552ea225050087d7efe78b6cea27d26d5a7fed205",
    "aa02e13af546d7bc": "04422eecfb55bc76d2ab4b4c196a18ad9874330b9814dafdb3fbde573030ea48",
    "ab5a3cc2af4cf3b8": "c2a12e2b175e04d7c97c1e05196980cea291f45565853d698001e29efbc2e9b7",
    "c7194f4f61bd273b": "6bf6c639591b11b42ad15cfb5f2d2130f590607742ec1415342ca82ebc794556",
    "df0609b2d198d594": "a787338a12c3216c018787e70c2505bb7a76596cdbcb3560508db594806b9c51",
    "e3230f0a787255df": "6edfee1c1703afa6614602a9e5540502b1040870a871e2e990539462f1801800",
    "f51f5a6260a7b9c4": "ab8b53a9d8994aa7477201d1f272398aa18eaa9aee3f5830512f7a048467ef15",
}
_NAMES = _NAMED | {f"in_the_wild/trustairlab_{number}": sha256 for number, sha256 in _COLLECTED.items()}
FILES = tuple(PackageFile(PYRIT, f"{_FOLDER}/{name}.yaml", sha256) for name, sha256 in _NAMES.items())


def jailbreak_wrappers(files: PackageFiles) -> tuple[str, ...]:
    """Return texts with ``{prompt}`` in each.

    Raises:
        DataUnavailable: The package is unavailable.
    """
    import yaml

    texts = [str(yaml.safe_load(files.read(file))["value"]).strip() for file in FILES]
    return tuple(re.sub(r"\{\{\s*prompt\s*\}\}", "{prompt}", text) for text in texts)
