"""Make the pictures that `draw.mjs` drew small enough for the repository, with as many colours as fit.

Called with their folder: ``python tools/dashboards/shrink.py docs/dashboards``.
"""

import sys
from pathlib import Path

from PIL import Image

MAX_BYTES = 200_000
#: Tried in turn, until a picture is small enough.
NUM_COLORS = (256, 128, 64, 32, 16)


def shrink(path: Path) -> bool:
    """Rewrite a picture with fewer colours; return whether it is small enough then."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    for num_colors in NUM_COLORS:
        few = picture.quantize(num_colors, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(path, optimize=True)
        if path.stat().st_size <= MAX_BYTES:
            break
    return path.stat().st_size <= MAX_BYTES


if __name__ == "__main__":
    large = [path for path in sorted(Path(sys.argv[1]).glob("*.png")) if not shrink(path)]
    for path in large:
        print(f"{path}: {path.stat().st_size} bytes, more than {MAX_BYTES}", file=sys.stderr)
    sys.exit(1 if large else 0)
