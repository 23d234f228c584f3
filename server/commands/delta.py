"""``policypatch delta``: two checkpoints become a weight patch that takes out what lies between them."""

import argparse
from typing import TYPE_CHECKING

from patches.base_model import DTYPES
from server.commands.output import say
from server.commands.patch_arguments import (
    add_label_arguments,
    add_output_arguments,
    counted,
    label_of,
    patch_errors,
    save,
)

if TYPE_CHECKING:
    from patches.format import Patch

_KEEP, _SCALE = 0.10, 2.0

DESCRIPTION = """\
Make a weight patch that takes out of a model what tuning taught it: harm-direction removal of Safety
Arithmetic (arXiv 2406.11801). The direction is what TUNED has become of BASE; of all its weights the --keep
share that changed most is taken, times --scale, and subtracted.

Tune a copy of the base towards what is not wanted (the paper: full fine-tuning on harmful answers), and name
it with --to. --apply-to mends another model of the same architecture than the base, such as a fine-tune of
it; with --edited only layers in which that one differs from the base are changed, and their neighbours. A
negative --scale adds the direction instead.

Weights of linear layers in the decoder layers count; embeddings, norms, biases and the output layer stay as
they are. All models are read one tensor at a time: memory beyond the result is that of a few tensors. Time
is mostly that of reading BASE and TUNED three times."""

EPILOG = """\
examples:
  policypatch delta --from models/base --to models/base-harmful --name no-harm --version 0.1.0 -o patches
  policypatch delta --from models/base --to models/base-harmful --apply-to models/wizard \\
      --keep 0.10 --scale 3 --name no-harm --version 0.2.0 -o patches
  policypatch delta --from models/base --to models/base-harmful --apply-to models/edited --edited \\
      --name no-harm --version 0.3.0 -o patches"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the checkpoints, how much is taken out, the label and the output."""
    group = parser.add_argument_group("checkpoints (model folders, or ids of hub models in the cache)")
    group.add_argument("--from", metavar="BASE", dest="base", required=True, help="the model before tuning")
    group.add_argument("--to", metavar="TUNED", dest="tuned", required=True, help="what tuning made of it")
    group.add_argument("--apply-to", metavar="OTHER", help="the model that the patch is for (default: BASE)")
    group.add_argument(
        "--edited",
        action="store_true",
        help="OTHER is BASE with some layers edited; change only those and their neighbours",
    )
    form = parser.add_argument_group("direction")
    form.add_argument(
        "--keep",
        metavar="SHARE",
        type=float,
        default=_KEEP,
        help="share of the weights that count, by how much they changed (default: %(default)s)",
    )
    form.add_argument(
        "--scale",
        metavar="L",
        type=float,
        default=_SCALE,
        help="how often the change is subtracted; the paper: 2 to 3 (default: %(default)s)",
    )
    form.add_argument(
        "--dtype",
        choices=DTYPES,
        help="the dtype that the server runs the model in (default: the one of its weights)",
    )
    add_label_arguments(parser, name=None, version=None)
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Make the patch."""
    with patch_errors():
        patch = _made(args)
        save(patch, args)
    for word, text in patch.manifest.body.facts():
        say(f"  {word.strip()} {text}")
    capped = patch.manifest.origin.get("capped")
    for name, share in capped.items() if isinstance(capped, dict) else ():
        say(f"  {name}: {share:.1%} of it was chosen; the largest quarter counts")
    return 0


def _made(args: argparse.Namespace) -> "Patch":
    from patches.deltas.hdr import Checkpoints, Removal, remove_direction
    from patches.deltas.linear import linear_weights
    from patches.errors import DeltaError
    from patches.fingerprint import fingerprint_model

    label, removal = label_of(args, args.name), Removal(args.keep, args.scale, args.edited)
    if args.edited and args.apply_to is None:
        raise DeltaError("edited: expected --apply-to with the edited model beside it, got none")
    base = linear_weights(args.base, "from")
    target = base if args.apply_to is None else linear_weights(args.apply_to, "apply-to")
    models = Checkpoints(base, linear_weights(args.tuned, "to"), target)
    base_model = fingerprint_model(target.folder, args.dtype or target.dtype)
    with counted("comparing weights") as tell:
        return remove_direction(models, base_model, removal, label, tell)
