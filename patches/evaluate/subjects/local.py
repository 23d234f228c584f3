"""Subjects that run in this process, with transformers: a patch is a cache that is already filled.

One network serves all arms. Prompts are batched with padding on the left, behind the prefix, which the
attention mask hides; positions continue after the prefix's as if nothing were padded. A patch that steers is
hooks in the network while an arm is asked; one that changes weights is written into it meanwhile. Where
likelihoods are asked for, the context is the prompt and the tokens are the answer.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from patches.compile import compile_embeddings
from patches.deltas.applied import at_work, changes_of
from patches.errors import EvaluationError, SubjectFailed
from patches.evaluate.arms import Arm
from patches.evaluate.subjects.subject import Reading, Renderer, Timing
from patches.fingerprint import require_fits
from patches.format import Patch
from patches.join import join_kv, rotary_of_network
from patches.kinds.delta import Change
from patches.model import LoadedModel
from patches.sampling import Sampling
from patches.steer.batch import SteeredRow, steered
from patches.steer.network import layers_of
from patches.steer.vector import Vector, vector_of

#: Token ids, and how many of them are the prompt.
Row = tuple[tuple[int, ...], int]


class TransformersSubject:
    """One arm of a loaded model."""

    def __init__(self, model: LoadedModel, arm: Arm, *, batch_size: int = 8) -> None:
        """Prepare an arm.

        Raises:
            EvaluationError: The model has no tokenizer.
            BaseModelMismatch: A patch belongs to another model.
            ComposeError: Patches are to be joined, and this model's keys can't be moved.
            ModelUnusable: A patch steers, and this model's architecture can't be steered.
            KindMismatch: What is said to change weights does not.
        """
        if model.tokenizer is None:
            raise EvaluationError("model: has no tokenizer, so it can't be asked anything")
        self.arm = arm
        self.renderer = Renderer(model.tokenizer, arm)
        self._network = model.network
        self._batch_size = batch_size
        self._prefix: torch.Tensor | None = None
        self._vector: Vector | None = None
        if arm.vector is not None:
            require_fits(model.base_model, arm.vector.manifest.base_model)
            layers_of(model.network)
            self._vector = vector_of(arm.vector, self._device)
        self._changes: Sequence[Change] = ()
        if arm.weights is not None:
            require_fits(model.base_model, arm.weights.manifest.base_model)
            self._changes = changes_of(arm.weights)
        if arm.patch is not None:
            self._prefix = self._kv_of(arm.patch, model)
        elif arm.parts:
            rotary = rotary_of_network(model.network, model.base_model.head_size)
            self._prefix = join_kv([self._kv_of(part, model) for part in arm.parts], rotary)

    def _kv_of(self, patch: Patch, model: LoadedModel) -> torch.Tensor:
        require_fits(model.base_model, patch.manifest.base_model)
        kv = patch.kv
        if kv is None:
            # A patch has K/V or embeddings, or both.
            assert patch.embeddings is not None
            kv = compile_embeddings(model.network, patch.embeddings)
        # A run in float32, several times as fast on a CPU without bfloat16 units, reads narrower K/V exactly.
        weight = self._network.get_input_embeddings().weight
        return kv.to(weight.device, weight.dtype)

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._network.get_input_embeddings().weight.device
        return device

    def chat(self, prompts: Sequence[str], sampling: Sampling) -> list[list[str]]:
        """Answer each prompt; see ``Subject``."""
        answers: list[list[str]] = []
        torch.manual_seed(sampling.seed)
        for start in range(0, len(prompts), self._batch_size):
            batch = [self.renderer.chat_ids(prompt) for prompt in prompts[start : start + self._batch_size]]
            answers += self._generate(batch, sampling)
        return answers

    def score(self, readings: Sequence[Reading]) -> list[list[float]]:
        """Return log probabilities; see ``Subject``.

        A reading's last token is not fed, so the choices ``A`` to ``D`` behind one question are one row. Rows
        of like length go together, so that little is padded.
        """
        for reading in readings:
            if not reading.context:
                raise EvaluationError("reading: expected something before the tokens that are scored")
        by_row: dict[Row, list[int]] = {}
        for place, reading in enumerate(readings):
            # Where an answer begins makes a difference where it is steered.
            num_prompt = 0 if self._vector is None else len(reading.context)
            by_row.setdefault(((*reading.context, *reading.tokens[:-1]), num_prompt), []).append(place)
        rows = sorted(by_row, key=lambda row: len(row[0]))
        found: list[list[float]] = [[] for _ in readings]
        for start in range(0, len(rows), self._batch_size):
            batch = rows[start : start + self._batch_size]
            for row, logits in zip(batch, self._logits(batch), strict=True):
                for place in by_row[row]:
                    found[place] = _token_scores(logits, readings[place])
        return found

    def time(self, prompts: Sequence[str], num_tokens: int) -> list[Timing]:
        """Time answers; see ``Subject``."""
        return [self._time_one(self.renderer.chat_ids(prompt), num_tokens) for prompt in prompts]

    def _time_one(self, ids: tuple[int, ...], num_tokens: int) -> Timing:
        stamps: list[float] = []

        class Stopwatch:
            def put(self, value: Any) -> None:
                stamps.append(time.perf_counter())

            def end(self) -> None:
                pass

        start = time.perf_counter()
        with self._inference([len(ids)]):
            self._network.generate(
                **self._inputs([ids]),
                do_sample=False,
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                streamer=Stopwatch(),
            )
        # The streamer is handed the prompt first.
        return Timing(stamps[1] - start, stamps[-1] - start, num_tokens)

    def _generate(self, batch: Sequence[tuple[int, ...]], sampling: Sampling) -> list[list[str]]:
        options: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            options = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": 0,
            }
        repeated = [ids for ids in batch for _ in range(sampling.num_samples)]
        inputs = self._inputs(repeated)
        with self._inference([len(ids) for ids in repeated]):
            output = self._network.generate(**inputs, **options, max_new_tokens=sampling.max_tokens)
        new = output[:, inputs["input_ids"].shape[1] :].tolist()
        texts = [self.renderer.text(row) for row in new]
        n = sampling.num_samples
        return [texts[i : i + n] for i in range(0, len(texts), n)]

    def _inputs(self, batch: Sequence[tuple[int, ...]]) -> dict[str, Any]:
        """Pad on the left, with the prefix's places in front of the padding."""
        num_prefix = self._num_prefix
        width = max(len(ids) for ids in batch)
        filler = self._filler_id()
        rows = [[filler] * (num_prefix + width - len(ids)) + list(ids) for ids in batch]
        masks = [[1] * num_prefix + [0] * (width - len(ids)) + [1] * len(ids) for ids in batch]
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor(rows, device=self._device),
            "attention_mask": torch.tensor(masks, device=self._device),
            "pad_token_id": filler,
        }
        if self._prefix is not None:
            inputs["past_key_values"] = self._cache(len(batch))
        return inputs

    def _logits(self, rows: Sequence[Row]) -> torch.Tensor:
        """Read rows of ids behind the prefix: ``[B, T, V]``."""
        num_prefix = self._num_prefix
        width = max(len(row) for row, _ in rows)
        filler = self._filler_id()
        # Padded on the right: what comes later changes nothing before it.
        ids = torch.tensor([[*row, *[filler] * (width - len(row))] for row, _ in rows], device=self._device)
        mask = torch.tensor(
            [[1] * (num_prefix + len(row)) + [0] * (width - len(row)) for row, _ in rows], device=self._device
        )
        positions = torch.arange(num_prefix, num_prefix + width, device=self._device).expand(len(rows), -1)
        with self._inference([num_prompt for _, num_prompt in rows]):
            logits: torch.Tensor = self._network(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=None if self._prefix is None else self._cache(len(rows)),
            ).logits
        return logits

    def _cache(self, batch_size: int) -> Any:
        from transformers import DynamicCache

        assert self._prefix is not None
        cache = DynamicCache()
        for index, (keys, values) in enumerate(self._prefix):
            # [N, H_kv, D] -> [B, H_kv, N, D]
            keys, values = (t.transpose(0, 1).expand(batch_size, -1, -1, -1) for t in (keys, values))
            cache.update(keys.contiguous(), values.contiguous(), index)
        return cache

    def _filler_id(self) -> int:
        tokenizer = self.renderer.tokenizer
        for name in ("pad_token_id", "eos_token_id"):
            if (token_id := getattr(tokenizer, name, None)) is not None:
                return int(token_id)
        return 0

    @property
    def _num_prefix(self) -> int:
        return 0 if self._prefix is None else self._prefix.shape[2]

    @contextmanager
    def _inference(self, num_prompt_tokens: Sequence[int]) -> Iterator[None]:
        """Run a batch of prompts of so many tokens each, steered where this arm steers."""
        vector, num_prefix = self._vector, self._num_prefix
        rows = [SteeredRow(vector, num_prefix + n, num_prefix) for n in num_prompt_tokens] if vector else []
        try:
            steering = steered(self._network, rows) if rows else nullcontext()
            with torch.inference_mode(), at_work(self._network, self._changes), steering:
                yield
        except torch.OutOfMemoryError as error:
            raise SubjectFailed(
                f"{self.arm.name}: out of memory; a smaller --batch-size needs less"
            ) from error


def _token_scores(logits: torch.Tensor, reading: Reading) -> list[float]:
    """Read a reading's log probabilities off its row: ``[T, V]``."""
    first = len(reading.context)
    steps = torch.log_softmax(logits[first - 1 : first - 1 + len(reading.tokens)].float(), dim=-1)
    wanted = torch.tensor(reading.tokens, dtype=torch.long, device=steps.device)
    return [float(x) for x in steps.gather(1, wanted[:, None])[:, 0]]
