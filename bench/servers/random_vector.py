"""Steering patches with random vectors on all layers, for speed measurements.

How long a step takes does not depend on where a vector points, only on which tokens it acts on. The manifest
says that the values are random.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from patches.base_model import DTYPES, BaseModel
from patches.errors import PatchError
from patches.fingerprint import fingerprint_model
from patches.format import Patch, make_patch, write_patch
from patches.kinds.condition import Condition, Probe
from patches.kinds.steering import Steering, SteeringBody
from patches.label import Label

#: A share of each state's length; the form of the paper, which renormalises.
_STRENGTH = 0.02
#: Scores of random probes are small beside it.
_OUT_OF_REACH = 1e6


def random_vector(base_model: BaseModel, label: Label, *, seed: int = 0, condition: str = "none") -> Patch:
    """Make a patch of unit vectors; equal arguments give an equal digest.

    Args:
        base_model: the model.
        label: name and version.
        seed: of the values.
        condition: ``none``: it acts on all tokens and all layers. ``met`` and ``unmet``: it acts from the
            last prompt token on in the upper half of the layers, or never; four layers below are scored.

    Raises:
        PatchFormatError: the parts do not make a valid patch.
    """
    num_layers, width = base_model.num_layers, base_model.hidden_size
    generator = torch.Generator().manual_seed(seed)
    vector = torch.nn.functional.normalize(torch.randn(num_layers, width, generator=generator), dim=1)
    origin = {"method": "import", "values": f"random, seed {seed}"}
    if condition == "none":
        body = SteeringBody(Steering("residual", "relative", _STRENGTH))
        return make_patch(label.manifest(base_model, body, origin), {"vector": vector})
    scored = tuple(range(max(0, num_layers // 2 - 4), max(1, num_layers // 2)))
    threshold = _OUT_OF_REACH if condition == "unmet" else -_OUT_OF_REACH
    body = SteeringBody(
        Steering("residual", "relative", _STRENGTH, tokens="answer"),
        Condition((Probe(scored, "mean", 0.0, threshold),)),
    )
    vector[: scored[-1] + 1] = 0
    probes = torch.randn(len(scored), width, generator=generator)
    return make_patch(label.manifest(base_model, body, origin), {"vector": vector, "probes": probes})


def main(argv: Sequence[str] | None = None) -> int:
    """Write the patches; the last line of stdout is one JSON object.

    Returns:
        0, or 1 where the model cannot be used.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.servers.random_vector", description=__doc__)
    parser.add_argument("--model", required=True, help="model folder; it needs no weights")
    parser.add_argument("--count", type=int, default=1, metavar="K", help="vectors v-0 to v-(K-1) (1)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder for the files")
    args = parser.parse_args(argv)
    try:
        base_model = fingerprint_model(args.model, args.dtype, may_lack_weights=True)
        wanted = [(f"v-{i}", "none") for i in range(args.count)] + [("met", "met"), ("unmet", "unmet")]
        written = []
        for i, (name, condition) in enumerate(wanted):
            patch = random_vector(base_model, Label(name, "1.0.0"), seed=args.seed + i, condition=condition)
            path = write_patch(patch, args.out)
            written.append({"file": path.name, "name": name, "digest": patch.digest, "nbytes": patch.nbytes})
    except (PatchError, OSError) as error:
        print(f"random_vector: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"patches": written}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
