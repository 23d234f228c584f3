"""Policy aliases in vLLM's model registry: ``<served name>:<patch>`` is a model name for requests."""

from typing import TYPE_CHECKING, Any

from vllm.entrypoints.openai.models.serving import OpenAIModelRegistry
from vllm.entrypoints.serve.engine.protocol import ModelCard, ModelList, ModelPermission

if TYPE_CHECKING:
    from server.request.decider import Decider
    from server.request.gate import PatchGate


def add_aliases(models: Any, gate: "PatchGate", decider: "Decider") -> None:
    """Have vLLM know the aliases of patches as models, and name the one that was asked for in answers."""
    models.registry = PatchModelRegistry(models.registry, gate, decider)
    of_vllm = models.model_name

    def model_name(lora_request: Any = None) -> str:
        alias = gate.answering_alias() if lora_request is None else None
        return of_vllm(lora_request) if alias is None else alias

    models.model_name = model_name


class PatchModelRegistry(OpenAIModelRegistry):
    """vLLM's registry of base models, which also knows the aliases of patches.

    Every route that takes a ``model`` asks ``is_base_model`` about it before it does anything else: that is
    where an alias becomes the request's selection.
    """

    def __init__(self, registry: OpenAIModelRegistry, gate: "PatchGate", decider: "Decider") -> None:
        super().__init__(registry.model_config, registry.base_model_paths)
        self._gate = gate
        self._decider = decider

    def is_base_model(self, model_name: str) -> bool:
        """Return whether the name is served; an alias is noted as this request's selection.

        Raises:
            PolicyPatchError: the name is an alias of a patch that is malformed, unknown or not ready.
        """
        return super().is_base_model(model_name) or self._gate.note_alias(model_name)

    async def show_available_models(self) -> ModelList:
        """List base models and, with the base model as ``parent``, an alias per patch it may use."""
        models = await super().show_available_models()
        base = models.data[0]
        models.data.extend(
            ModelCard(
                id=alias,
                root=base.root,
                parent=base.id,
                max_model_len=base.max_model_len - num_prefix_tokens,
                permission=[ModelPermission()],
            )
            for alias, num_prefix_tokens in self._decider.aliases(base.id).items()
        )
        return models
