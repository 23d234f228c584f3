"""LoRA adapters with random weights, for speed: how long a step takes does not depend on what they hold.

PEFT makes them on the model's shape alone, so that a model folder without weights does.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

#: What is usually adapted, and all that every decoder of the Llama kind has.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


def write_adapter(model: str, folder: Path, *, rank: int, dtype: str, seed: int) -> Path:
    """Write an adapter of normally distributed weights in PEFT's format; return its folder.

    Raises:
        ValueError: the model has no projections of these names.
        OSError: the folder cannot be written.
    """
    config = AutoConfig.from_pretrained(model, local_files_only=True)
    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    with torch.device("meta"):
        network = get_peft_model(AutoModelForCausalLM.from_config(config), lora)
    random = torch.Generator().manual_seed(seed)
    weights = {
        # Small enough that answers stay sentences; both factors count, or the adapter would do nothing.
        name: (torch.randn(tensor.shape, generator=random) * 0.01).to(getattr(torch, dtype))
        for name, tensor in get_peft_model_state_dict(network).items()
    }
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    network.peft_config["default"].save_pretrained(folder)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Write adapters; the last line of stdout is one JSON object.

    Returns:
        0, or 1 where the model cannot be used.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.servers.random_adapter", description=__doc__)
    parser.add_argument("--model", required=True, help="model folder; it needs no weights")
    parser.add_argument("--rank", type=int, action="append", required=True, metavar="R", help="repeatable")
    parser.add_argument("--count", type=int, default=1, metavar="K", help="adapters of each rank (1)")
    parser.add_argument("--name", help="of adapters, with a number behind (default: lora-rR)")
    parser.add_argument("--dtype", default="bfloat16", help="(default: %(default)s)")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="gets a folder for each")
    args = parser.parse_args(argv)
    adapters = {}
    try:
        for rank in args.rank:
            for i in range(args.count):
                name = f"{args.name}-{i}" if args.name else f"lora-r{rank}"
                folder = write_adapter(args.model, args.out / name, rank=rank, dtype=args.dtype, seed=i)
                adapters[name] = str(folder)
    except (ValueError, OSError) as error:
        print(f"random_adapter: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"adapters": adapters}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
