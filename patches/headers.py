"""The names of the HTTP headers of policy patches, for all who send or read them."""

#: Of a request: the patches to answer with. Of a response: what answered, ``none`` for the base model.
PATCH_HEADER = "X-Policy-Patch"

#: Of a response: the digest of what answered.
DIGEST_HEADER = f"{PATCH_HEADER}-Digest"

#: Of a response: how the parts of what answered relate, ``prepared`` or ``joined``.
COMPOSITION_HEADER = f"{PATCH_HEADER}-Composition"

#: Of a response that is no stream: whether the condition of a steering patch was met.
CONDITION_HEADER = f"{PATCH_HEADER}-Condition"

#: Of a response: ``canary`` or ``stable``, where a canary runs.
ARM_HEADER = f"{PATCH_HEADER}-Arm"

#: Of a response: the weight patch that was in force, ``none`` for the model's own weights.
DELTA_HEADER = "X-Policy-Delta"

#: Of a response: ``other`` where a patch answered that was made for other weights than those in force.
WEIGHTS_HEADER = f"{PATCH_HEADER}-Weights"

#: Of a response: the revision of the fleet's catalog by which the request was decided.
REVISION_HEADER = f"{PATCH_HEADER}-Revision"

#: Of a request: the revision to decide it by, as an earlier answer named it.
AS_OF_HEADER = f"{PATCH_HEADER}-As-Of"

#: Of an upload: its ``.sig`` file in base64.
SIGNATURE_HEADER = f"{PATCH_HEADER}-Signature"

#: Of a request on Amazon SageMaker, which is not ours: what takes the place of ``model``.
ADAPTER_HEADER = "X-Amzn-SageMaker-Adapter-Identifier"

#: Of an admin call: its key, where vLLM asks for an API key in ``Authorization``.
ADMIN_KEY_HEADER = "X-Admin-Key"


def asgi_name(header: str) -> bytes:
    """Return the name of a header as ASGI has it: in lower case, as bytes."""
    return header.lower().encode("ascii")
