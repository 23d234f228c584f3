"""Answers from a model in this process, by transformers' ``generate``, a batch at a time."""

from collections.abc import Sequence
from typing import Any

import torch

from patches.errors import PairsError
from patches.model import LoadedModel
from patches.pairs.prompts import Messages, under_policy
from patches.pairs.sampler import Answer
from patches.sampling import Sampling


class LocalSampler:
    """A loaded model, by itself or under a policy text."""

    def __init__(self, model: LoadedModel, sampling: Sampling, policy_text: str | None = None) -> None:
        """Take the model.

        Raises:
            PairsError: It has no tokenizer with a chat template.
        """
        if model.tokenizer is None or not getattr(model.tokenizer, "chat_template", None):
            raise PairsError("model: has no tokenizer with a chat template")
        self._network = model.network
        self._tokenizer = model.tokenizer
        self._sampling = sampling
        self._policy_text = policy_text

    def sample(self, conversations: Sequence[Messages], key: str) -> list[list[Answer]]:
        """Answer conversations as one batch."""
        inputs = self._inputs(conversations)
        devices = [self._network.device] if self._network.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(self._sampling.seed_of(key))
            output = self._network.generate(**inputs, generation_config=self._config())
        new_ids = output[:, inputs["input_ids"].shape[1] :].tolist()
        answers = [self._answer(ids) for ids in new_ids]
        k = self._sampling.num_distinct
        return [answers[i : i + k] for i in range(0, len(answers), k)]

    def _inputs(self, conversations: Sequence[Messages]) -> dict[str, Any]:
        rendered = [self._prompt_ids(messages) for messages in conversations]
        width = max(map(len, rendered))
        ids = torch.full((len(rendered), width), self._pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(rendered):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        return {"input_ids": ids.to(self._network.device), "attention_mask": mask.to(self._network.device)}

    def _prompt_ids(self, messages: Messages) -> list[int]:
        from jinja2.exceptions import TemplateError

        if self._policy_text is not None:
            messages = under_policy(messages, self._policy_text)
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, ValueError, KeyError, IndexError, TypeError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise PairsError(f"chat template: refuses messages of the roles {roles}: {error}") from error
        return [int(i) for i in self._tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _config(self) -> Any:
        from transformers import GenerationConfig

        own, sampling = self._network.generation_config, self._sampling
        drawn: dict[str, Any] = {}
        if sampling.temperature > 0:
            drawn = {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                # The nucleus alone decides: transformers' own default would cut at 50 tokens.
                "top_k": 0,
                "num_return_sequences": sampling.num_distinct,
            }
        return GenerationConfig(
            do_sample=sampling.temperature > 0,
            max_new_tokens=sampling.max_tokens,
            eos_token_id=own.eos_token_id,
            pad_token_id=self._pad_id,
            bos_token_id=own.bos_token_id,
            **drawn,
        )

    @property
    def _end_ids(self) -> set[int]:
        end = self._network.generation_config.eos_token_id
        return set(end if isinstance(end, list) else [] if end is None else [end])

    @property
    def _pad_id(self) -> int:
        pad = self._tokenizer.pad_token_id
        # Padding is masked: any id does.
        return int(pad) if pad is not None else min(self._end_ids, default=0)

    def _answer(self, token_ids: list[int]) -> Answer:
        stop = next((i for i, token_id in enumerate(token_ids) if token_id in self._end_ids), None)
        text = self._tokenizer.decode(token_ids[:stop], skip_special_tokens=True)
        return Answer(text.strip(), stop is not None)
