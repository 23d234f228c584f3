"""The context length as a patched request has it: what its prefix leaves of the model's.

vLLM's routes know nothing of the prefix. They cut an answer to the context, truncate a prompt to it, and
count the steps of a beam search by it, each by the model's length. Here they get the length that is left, so
that they do for a patched request what they do for any other, and nothing has to be guessed from the values
that they pass on.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vllm.entrypoints.serve.engine.serving import BaseServing
from vllm.renderers.params import TokenizeParams

from server.errors import UnsupportedWithPatch

if TYPE_CHECKING:
    from server.request.gate import PatchGate


class RemainingContext:
    """vLLM's ``ModelConfig`` with the context length that the current request's prefix leaves."""

    def __init__(self, model_config: Any, gate: "PatchGate") -> None:
        self._model_config = model_config
        self._gate = gate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model_config, name)

    @property
    def max_model_len(self) -> int:
        """Tokens of the visible prompt and the answer together."""
        return int(self._model_config.max_model_len) - self._gate.num_prefix_tokens()


def hand_out_remaining_context(app_state: Any, gate: "PatchGate") -> None:
    """Hand vLLM's serving objects the remaining length, and have their renderer fit prompts into it.

    To be called once, when ``init_app_state`` has made them.
    """
    for serving in vars(app_state)["_state"].values():
        if isinstance(serving, BaseServing):
            serving.model_config = RemainingContext(serving.model_config, gate)
    renderer = app_state.online_renderer.renderer
    max_model_len = renderer.model_config.max_model_len
    renderer.render_cmpl_async = _fitting(renderer.render_cmpl_async, 1, gate, max_model_len)
    renderer.render_chat_async = _fitting(renderer.render_chat_async, 2, gate, max_model_len)


def _fitting(
    render: Callable[..., Any], position: int, gate: "PatchGate", max_model_len: int
) -> Callable[..., Any]:
    """Wrap a method of a renderer, whose argument at ``position`` says how prompts are tokenized."""

    async def render_to_fit(*args: Any, **kwargs: Any) -> Any:
        if not (num_prefix_tokens := gate.num_prefix_tokens()):
            return await render(*args, **kwargs)
        if len(args) > position:
            params = truncated(args[position], num_prefix_tokens)
            args = (*args[:position], params, *args[position + 1 :])
        elif kwargs.get("tok_params") is not None:
            kwargs["tok_params"] = truncated(kwargs["tok_params"], num_prefix_tokens)
        rendered = await render(*args, **kwargs)
        # Chats come with their conversations.
        for prompt in rendered[1] if isinstance(rendered, tuple) else rendered:
            try:
                fitting_max_tokens(
                    None, len(prompt.get("prompt_token_ids", ())), num_prefix_tokens, max_model_len
                )
            except UnsupportedWithPatch as error:
                raise gate.reject(error) from None
        return rendered

    return render_to_fit


def truncated(params: TokenizeParams, num_prefix_tokens: int) -> TokenizeParams:
    """Return ``params`` whose truncation, where there is one, leaves room for the prefix and one token."""
    if params.truncate_prompt_tokens is None or params.max_truncation_tokens is None:
        return params
    limit = max(0, params.max_truncation_tokens - num_prefix_tokens)
    wanted = params.truncate_prompt_tokens
    return replace(params, truncate_prompt_tokens=limit if wanted < 0 else min(wanted, limit))


def fitting_max_tokens(
    max_tokens: int | None, num_prompt_tokens: int, num_prefix_tokens: int, max_model_len: int
) -> int:
    """Return ``max_tokens``, cut to the room that prefix and prompt leave of the context.

    vLLM cuts an answer to its own limit in the same way.

    Raises:
        UnsupportedWithPatch: prefix and prompt leave no room.
    """
    room = max_model_len - num_prefix_tokens - num_prompt_tokens
    if room < 1:
        raise UnsupportedWithPatch(
            f"the prompt is too long for this policy patch: the model's context is {max_model_len} tokens, "
            f"the patch takes {num_prefix_tokens} and the prompt {num_prompt_tokens}; shorten the prompt"
        )
    return room if max_tokens is None else min(max_tokens, room)
