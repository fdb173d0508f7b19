"""The embedded sampler: a transformers model decodes the G completions of each question, no other process or engine.

Each prompt is run once and its cache copied G times; rows that have ended leave the batch. Not an engine: for models of
any size on a GPU use vLLM. New weights come either by sharing the trained module or by merging into a copy (see
rl/policy/policy.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedTokenizerBase

from rl.generate.completions import before_any
from rl.generate.growing_cache import growing_cache
from rl.generate.protocol import Finished, Request, SamplingParameters
from rl.generate.token_sampling import sample_tokens, token_statistics, uniform_streams
from rl.policy.policy import Policy, merged_weights
from rl.records import FinishReason, Group, PromptCompletion, Rollout

COMPACT_BELOW = 0.8  # rows that have ended are removed once fewer than this share of the batch is still decoding


class TransformersGenerator:
    """Generator (rl/generate/protocol.py) on a transformers causal language model.

    max_sequences bounds how many completions decode at the same time."""

    description = ""

    def __init__(self, policy: Policy, *, merge: bool, max_sequences: int) -> None:
        self.policy_version = 0
        self._tokenizer: PreTrainedTokenizerBase = policy.tokenizer
        self._max_sequences = max_sequences
        self._is_copy = merge
        self._model = policy.pristine_copy().requires_grad_(False) if merge else policy.model
        self._parameters = dict(self._model.named_parameters()) if merge else {}
        self._eos_token_ids = policy.eos_token_ids

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
    def logprobs(self, rows: Sequence[PromptCompletion]) -> list[tuple[float, ...]]:
        found = []
        with self._evaluating():
            for prompt, completion in rows:
                ids = torch.tensor([[*prompt, *completion]], device=self._model.device)
                logits = self._model(input_ids=ids, use_cache=False, logits_to_keep=len(completion) + 1).logits[0, :-1]
                logprobs = torch.log_softmax(logits.float(), dim=-1).gather(1, ids[0, -len(completion):, None])
                found.append(tuple(logprobs.squeeze(1).tolist()))
        return found

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
        # Neighbours in length share a batch, so that little padding is decoded.
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt.token_ids), i))
        pieces = [(i, piece) for i in order for piece in self._pieces(requests[i])]
        rollouts: list[tuple[Rollout, ...]] = [()] * len(requests)
        while pieces:
            count = self._fitting([len(piece.seeds) for _, piece in pieces])
            batch, pieces = pieces[:count], pieces[count:]
            for (index, _), group in zip(batch, self._decode([piece for _, piece in batch], parameters), strict=True):
                rollouts[index] += group.rollouts
                if finished is not None and len(rollouts[index]) == len(requests[index].seeds):
                    finished(index, Group(requests[index].prompt, rollouts[index]))
        return [Group(request.prompt, members) for request, members in zip(requests, rollouts, strict=True)]

    def _pieces(self, request: Request) -> list[Request]:
        """The request, in parts where it alone wants more completions than may decode at the same time."""
        starts = range(0, len(request.seeds), self._max_sequences)
        return [Request(request.prompt, request.seeds[start : start + self._max_sequences]) for start in starts]

    def _fitting(self, sizes: Sequence[int]) -> int:
        """How many of the next pieces decode together; at least one."""
        total = 0
        for count, size in enumerate(sizes):
            total += size
            if total > self._max_sequences:
                return count
        return len(sizes)

    @torch.inference_mode()
    def _decode(self, requests: Sequence[Request], parameters: SamplingParameters) -> list[Group]:
        """Sample all completions of a batch of requests. Legend: B rows = completions, L longest prompt, T steps."""
        device = self._model.device
        prompts = [request.prompt.token_ids for request in requests]
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        input_ids = torch.tensor([[0] * pad + list(p) for pad, p in zip(padding, prompts, strict=True)], device=device)
        mask = torch.tensor([[0] * pad + [1] * len(p) for pad, p in zip(padding, prompts, strict=True)], device=device)
        is_padded = any(padding)
        cache = growing_cache(self._model.config)
        logits = self._model(
            input_ids=input_ids, attention_mask=mask if is_padded else None,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0) if is_padded else None,
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        ).logits[:, -1]

        repeats = torch.tensor([len(request.seeds) for request in requests], device=device)
        rows_B = torch.repeat_interleave(torch.arange(len(requests), device=device), repeats)
        cache.batch_select_indices(rows_B)
        logits, mask = logits[rows_B], mask[rows_B]
        lengths_B1 = mask.sum(1, keepdim=True)
        uniforms_BT = uniform_streams([s for r in requests for s in r.seeds], parameters.max_completion_tokens).to(
            device)
        stop_ids = torch.tensor(sorted({*self._eos_token_ids, *parameters.stop_token_ids}), device=device)

        num_rows, steps = len(rows_B), parameters.max_completion_tokens
        tokens_BT = torch.zeros(num_rows, steps, dtype=torch.long, device=device)
        logprobs_BT = torch.zeros(num_rows, steps, device=device)
        # [2, B, T]: entropies and self-certainties, where a reward asks for them.
        statistics_2BT = torch.zeros(2, num_rows, steps if parameters.token_statistics else 0, device=device)
        # index of the stop token; `steps` where there is none
        ended_at_B = torch.full((num_rows,), steps, device=device)
        live = torch.arange(num_rows, device=device)  # which completion each row of the present batch is
        for step in range(steps):
            tokens, logprobs = sample_tokens(logits, uniforms_BT[live, step], parameters)
            tokens_BT[live, step], logprobs_BT[live, step] = tokens, logprobs
            if parameters.token_statistics:
                statistics_2BT[:, live, step] = torch.stack(token_statistics(logits, parameters.temperature))
            stops = torch.isin(tokens, stop_ids)
            if parameters.stop_strings:
                stops |= self._complete_a_string(tokens_BT[live, : step + 1], parameters.stop_strings).to(device)
            ended_at_B[live] = torch.where(stops & (ended_at_B[live] == steps), step, ended_at_B[live])
            going = (ended_at_B[live] == steps).nonzero().squeeze(1)
            if step + 1 == steps or len(going) == 0:
                break
            if len(going) < COMPACT_BELOW * len(live):
                cache.batch_select_indices(going)
                live, tokens, mask, lengths_B1 = live[going], tokens[going], mask[going], lengths_B1[going]
            if is_padded:
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            logits = self._model(
                input_ids=tokens[:, None], attention_mask=mask if is_padded else None,
                position_ids=lengths_B1 + step if is_padded else None, past_key_values=cache, use_cache=True,
            ).logits[:, -1]
        return self._collect(
            requests, tokens_BT.cpu(), logprobs_BT.cpu(), statistics_2BT.cpu() if parameters.token_statistics else None,
            ended_at_B.tolist(), steps, parameters.stop_strings)

    def _complete_a_string(self, tokens_BT: torch.Tensor, stop_strings: tuple[str, ...]) -> torch.Tensor:
        """[B] whether the text so far holds one of the strings. A token is at least a byte, of which a character has at
        most four."""
        window = 4 * max(map(len, stop_strings)) + 4
        tails = self._tokenizer.batch_decode(tokens_BT[:, -window:].tolist(), skip_special_tokens=True)
        return torch.tensor([any(string in tail for string in stop_strings) for tail in tails])

    def _collect(
        self,
        requests: Sequence[Request],
        tokens_BT: torch.Tensor,
        logprobs_BT: torch.Tensor,
        statistics_2BT: torch.Tensor | None,
        ended_at: list[int],
        steps: int,
        stop_strings: tuple[str, ...],
    ) -> list[Group]:
        tokens = [row[: min(end + 1, steps)] for row, end in zip(tokens_BT.tolist(), ended_at, strict=True)]
        logprobs = logprobs_BT.tolist()
        statistics = None if statistics_2BT is None else statistics_2BT.tolist()
        texts = [
            before_any(text, stop_strings) for text in self._tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        groups, row = [], 0
        for request in requests:
            rollouts = []
            for seed in request.seeds:
                reason: FinishReason = "stop" if ended_at[row] < steps else "length"
                rollouts.append(Rollout(
                    token_ids=tuple(tokens[row]), logprobs=tuple(logprobs[row][: len(tokens[row])]),
                    text=request.prompt.assistant_prefix + texts[row], finish_reason=reason,
                    policy_version=self.policy_version, seed=seed,
                    entropies=None if statistics is None else tuple(statistics[0][row][: len(tokens[row])]),
                    self_certainties=None if statistics is None else tuple(statistics[1][row][: len(tokens[row])]),
                ))
                row += 1
            groups.append(Group(request.prompt, tuple(rollouts)))
        return groups
