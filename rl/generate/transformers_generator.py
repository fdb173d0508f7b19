"""The embedded sampler: a transformers model decodes the G completions of each question, no other process or engine.

Each prompt is run once, and its G completions share its cache; where the model cannot read it so, each has a copy. Rows
that have ended leave the batch. Not an engine: for models of any size on a GPU use vLLM. New weights come either by
sharing the trained module or by merging into a copy (see rl/policy/policy.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedTokenizerBase

from rl.generate.completions import CompletedGroups, Completion, first_numbers
from rl.generate.decoding import DecodingRows, SampledTokens, reads_shared_cache
from rl.generate.protocol import Finished, Request, SamplingParameters
from rl.generate.token_sampling import sample_tokens, token_statistics, uniform_streams
from rl.policy.logprob_calculator import unbatched_logprobs
from rl.policy.policy import Policy, merged_weights
from rl.records import Group, PromptCompletion

COMPACT_BELOW = 0.8  # rows that have ended are removed once fewer than this share of the batch is still decoding


class TransformersGenerator:
    """Generator (rl/generate/protocol.py) on a transformers causal language model.

    max_sequences bounds how many completions decode at the same time. shares_cache: whether those of a question share
    their prompt's cache."""

    description = ""

    def __init__(self, policy: Policy, *, merge: bool, max_sequences: int) -> None:
        self.policy_version = 0
        self._tokenizer: PreTrainedTokenizerBase = policy.tokenizer
        self._max_sequences = max_sequences
        self._is_copy = merge
        self._model = policy.pristine_copy().requires_grad_(False) if merge else policy.model
        self._parameters = dict(self._model.named_parameters()) if merge else {}
        self._eos_token_ids = policy.eos_token_ids
        with self._evaluating():
            self.shares_cache = reads_shared_cache(self._model)

    def take_over(self, policy: Policy, version: int) -> None:
        if self._is_copy:
            with torch.no_grad():
                for name, weight in merged_weights(policy):
                    self._parameters[name].copy_(weight)
        self.policy_version = version

    def rest(self) -> None:
        """There is nothing to give back: the cache lives in `generate` alone."""

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        if self._is_copy:
            self._parameters = {}
            self._model.to("meta")

    def generate(
        self, requests: Sequence[Request], parameters: SamplingParameters, finished: Finished | None = None
    ) -> list[Group]:
        with self._evaluating():
            return self._generate(requests, parameters, finished)

    @torch.inference_mode()
    def logprobs(self, pairs: Sequence[PromptCompletion]) -> list[tuple[float, ...]]:
        with self._evaluating():
            return [tuple(unbatched_logprobs(self._model, pair).tolist()) for pair in pairs]

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Without dropout, where the model is the trained module itself."""
        was_training = self._model.training
        self._model.eval()
        try:
            yield
        finally:
            self._model.train(was_training)

    def _generate(
        self, requests: Sequence[Request], parameters: SamplingParameters, finished: Finished | None
    ) -> list[Group]:
        groups = CompletedGroups(requests, self._tokenizer, parameters.stop_strings, self.policy_version, finished)
        # Neighbours in length share a batch, so that little padding is decoded.
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt.token_ids), i))
        starts = first_numbers(requests)
        pieces = [piece for i in order for piece in self._pieces(requests[i], starts[i])]
        while pieces:
            count = self._fitting([len(piece.seeds) for _, piece in pieces])
            batch, pieces = pieces[:count], pieces[count:]
            numbers = (number for start, piece in batch for number in range(start, start + len(piece.seeds)))
            for number, completion in zip(
                numbers, self._decode([piece for _, piece in batch], parameters), strict=True
            ):
                groups.add(number, completion)
        return groups.groups()

    def _pieces(self, request: Request, first: int) -> list[tuple[int, Request]]:
        """The request with its first completion's number, in parts where it alone wants more completions than may
        decode at the same time."""
        starts, size = range(0, len(request.seeds), self._max_sequences), self._max_sequences
        return [(first + start, Request(request.prompt, request.seeds[start : start + size])) for start in starts]

    def _fitting(self, sizes: Sequence[int]) -> int:
        """How many of the next pieces decode together; at least one."""
        total = 0
        for count, size in enumerate(sizes):
            total += size
            if total > self._max_sequences:
                return count
        return len(sizes)

    @torch.inference_mode()
    def _decode(self, requests: Sequence[Request], parameters: SamplingParameters) -> list[Completion]:
        """All completions of a batch of requests, sampled together, a token of each at a time."""
        seeds, steps = [seed for request in requests for seed in request.seeds], parameters.max_completion_tokens
        device = self._model.device
        rows = DecodingRows(self._model, requests, share=self.shares_cache and len(seeds) > len(requests))
        sampled = SampledTokens.none(len(seeds), steps, parameters.token_statistics, device)
        uniforms_BT = uniform_streams(seeds, steps).to(device)
        stop_ids = torch.tensor(sorted({*self._eos_token_ids, *parameters.stop_token_ids}), device=device)
        live = torch.arange(len(seeds), device=device)  # which completion each row of the present batch is
        for step in range(steps):
            tokens, logprobs = sample_tokens(rows.logits, uniforms_BT[live, step], parameters)
            sampled.tokens_BT[live, step], sampled.logprobs_BT[live, step] = tokens, logprobs
            if sampled.statistics_2BT is not None:
                statistics = torch.stack(token_statistics(rows.logits, parameters.temperature))
                sampled.statistics_2BT[:, live, step] = statistics
            stops = torch.isin(tokens, stop_ids)
            if parameters.stop_strings:
                so_far = sampled.tokens_BT[live, : step + 1]
                stops |= self._complete_a_string(so_far, parameters.stop_strings).to(device)
            going = sampled.end(live, stops, step)
            if step + 1 == steps or len(going) == 0:
                break
            if len(going) < COMPACT_BELOW * len(live):
                rows.keep(going)
                live, tokens = live[going], tokens[going]
            rows.append(tokens)
        return sampled.completions()

    def _complete_a_string(self, tokens_BT: torch.Tensor, stop_strings: tuple[str, ...]) -> torch.Tensor:
        """[B] whether the text so far, with its control tokens, holds one of the strings. A token is at least a byte,
        of which a character has at most four."""
        window = 4 * max(map(len, stop_strings)) + 4
        tails = self._tokenizer.batch_decode(tokens_BT[:, -window:].tolist(), skip_special_tokens=False)
        return torch.tensor([any(string in tail for string in stop_strings) for tail in tails])
