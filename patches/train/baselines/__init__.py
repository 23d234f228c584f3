"""What patches are compared with: something else that the same trainer learns from the same pairs.

A baseline is not a patch and is not served: ``policypatch train`` learns and saves it, ``policypatch eval``
loads and measures it. Each is one module and one row of ``BASELINES``, and no other code knows its name.

============  ===================================================
``baseline``  what each of them offers to trainer and evaluation
``lora``      a LoRA adapter of the attention's projections
============  ===================================================
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patches.train.baselines.baseline import BaselineModule


@dataclass(frozen=True)
class Baseline:
    """One baseline, as the commands name it; its module is imported when it is used."""

    #: The key of ``TrainConfig.baseline`` and, with hyphens, the flag of ``policypatch train``.
    option: str
    metavar: str
    train_help: str
    eval_help: str
    module_name: str

    def module(self) -> "BaselineModule":
        """Import the module."""
        module: Any = importlib.import_module(self.module_name)
        found: BaselineModule = module
        return found


#: The flag of ``policypatch eval``, which arms and folders are called after -> the baseline.
BASELINES: Mapping[str, Baseline] = {
    "lora": Baseline(
        option="lora_rank",
        metavar="R",
        train_help="learn a LoRA adapter of this rank instead, to compare with",
        eval_help="PEFT LoRA adapters, merged; not with --url",
        module_name="patches.train.baselines.lora",
    ),
}


def baseline_of_option(option: str) -> Baseline:
    """Return the baseline that an option of the configuration asks for."""
    return next(baseline for baseline in BASELINES.values() if baseline.option == option)
