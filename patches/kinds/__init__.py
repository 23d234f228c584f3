"""The kinds of patch, each a module with what its manifests say and which tensors its files hold.

=============  =====================================================================
``body``       the seam: what every kind answers
``prefix``     K/V in front of the prompt
``steering``   a direction added to hidden states
``condition``  when it is added
``delta``      new values for some of the model's weights
=============  =====================================================================
"""

from collections.abc import Mapping

from patches.kinds.body import Body
from patches.kinds.delta import DeltaBody
from patches.kinds.prefix import PrefixBody
from patches.kinds.steering import SteeringBody

#: By the word that a manifest has for it.
KINDS: Mapping[str, type[Body]] = {body.kind: body for body in (PrefixBody, SteeringBody, DeltaBody)}

FORMAT_VERSIONS = tuple(sorted({body.format_version for body in KINDS.values()}))
