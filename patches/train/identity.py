"""What a run is: a digest of everything that its result depends on, and what a patch says of its origin.

Only digests of the inputs go into either, so no path, no device and no time does.
"""

import hashlib

from patches.canonical import JsonValue, canonical_json
from patches.format import read_patch
from patches.pairs.rows import file_digest
from patches.train.checkpoint import RunState
from patches.train.config import TrainConfig
from patches.train.export import curves_for_manifest
from patches.train.inputs import LoadedInputs, TrainInputs


def identity_of(inputs: TrainInputs, config: TrainConfig, loaded: LoadedInputs) -> str:
    """Return the digest by which a checkpoint knows the run that it belongs to."""
    model = vars(loaded.model.base_model) | {"dtype": loaded.served_dtype}
    document = {"model": {**model, "rope": dict(model["rope"])}, **_recipe(inputs, config, loaded)}
    return _digest(canonical_json(document))


def origin_of(
    inputs: TrainInputs, config: TrainConfig, loaded: LoadedInputs, state: RunState
) -> dict[str, JsonValue]:
    """Return what the manifest says about how a patch was learned."""
    recipe = _recipe(inputs, config, loaded)
    recipe["data"] |= loaded.counts()
    return {
        "method": "trained" if loaded.scores is None else "set",
        "seed": config.seed,
        "curves": curves_for_manifest(state.curves),
        **recipe,
    }


def _recipe(inputs: TrainInputs, config: TrainConfig, loaded: LoadedInputs) -> dict[str, JsonValue]:
    data: dict[str, JsonValue] = {"pairs_digest": file_digest(inputs.pairs)}
    if inputs.benign is not None:
        data["benign_digest"] = file_digest(inputs.benign)
    recipe: dict[str, JsonValue] = {"config": config.as_json(), "data": data}
    if loaded.scores is not None:
        recipe["scores_digest"] = loaded.scores.digest
    texts = {"init_text_digest": inputs.init_text, "teacher_text_digest": inputs.teacher_text}
    recipe |= {key: _digest(text) for key, text in texts.items() if text is not None}
    if inputs.init_patch is not None:
        recipe["init_patch_digest"] = read_patch(inputs.init_patch).digest
    if inputs.teacher is not None and config.dpo_reference == "teacher":
        from patches.fingerprint import fingerprint_model

        recipe["teacher_weights_digest"] = fingerprint_model(inputs.teacher, "float32").weights_digest
    if loaded.others:
        recipe["composed_with"] = [
            {"name": p.manifest.name, "version": p.manifest.version, "digest": p.digest}
            for p in loaded.others
        ]
    return recipe


def _digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
