"""Pairs of answers -> verdicts of a local transformers model: is Yes or No the likelier next token after the judge's
prompt?

Nothing is generated: one forward pass per pair, in batches, and the verdict is deterministic. Differs from asking for
text (openai.py) in that every model answers; so a reply is a verdict only where Yes and No together have a
probability of at least `min_mass`. torch and transformers are imported when the judge is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rewards.judges.questions import DEFAULT_PROMPT, JudgeError, Judgement, JudgePrompt, Pair

_WORDS = ("Yes", "No")


class TransformersJudge:
    """model: folder or hub id. batch_tokens: padded tokens in one forward pass, at most (one longer prompt goes alone).
    device: None for the GPU if there is one. dtype: `auto` for the checkpoint's. Raises JudgeError for a model that
    cannot be loaded or whose tokenizer cannot tell Yes from No."""

    def __init__(self, model: str, *, prompt: str = DEFAULT_PROMPT, min_mass: float = 0.1, batch_tokens: int = 8192,
                 device: str | None = None, dtype: str = "auto") -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if not 0 <= min_mass <= 1:
            raise ValueError(f"min_mass is {min_mass!r}, expected a probability in [0, 1]")
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens is {batch_tokens!r}, expected at least 1")
        self._prompt = JudgePrompt(prompt)
        self._min_mass, self._batch_tokens = min_mass, batch_tokens
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.place = f"model {model!r} on {self._device}"
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
            self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(self._device).eval()
        except (OSError, ValueError) as error:
            raise JudgeError(f"judge model {model!r} cannot be loaded: {error}") from error
        self._verdict_tokens = [self._first_token(word) for word in _WORDS]
        if self._verdict_tokens[0] == self._verdict_tokens[1]:
            raise JudgeError(f"{self.place}: its tokenizer begins Yes and No with the same token; use another model")

    async def judge(self, question: str, pairs: Sequence[Pair]) -> list[Judgement]:
        """Longest prompts first, so that a batch holds prompts of about one length; nothing is awaited."""
        prompts = [self._encode(self._prompt.fill(question, pair)) for pair in pairs]
        judgements: list[Judgement | None] = [None] * len(pairs)
        for batch in self._batches(prompts):
            for i, (yes, no) in zip(batch, self._probabilities([prompts[i] for i in batch]), strict=True):
                equal = None if yes == no or yes + no < self._min_mass else yes > no
                judgements[i] = Judgement(equal, f"P(Yes) = {yes:.3g}, P(No) = {no:.3g}")
        return [judgement for judgement in judgements if judgement is not None]

    def _first_token(self, word: str) -> int:
        """Of the word as it would follow the prompt: without the space that some tokenizers put before a text of its
        own."""
        base = self._encode("?")
        follows: list[int] = self._tokenizer(self._text("?") + word, add_special_tokens=False)["input_ids"]
        if follows[:len(base)] == base and len(follows) > len(base):
            return follows[len(base)]
        return int(self._tokenizer(word, add_special_tokens=False)["input_ids"][0])

    def _text(self, prompt: str) -> str:
        """With the model's chat template as the user's turn; a model without one continues the prompt on a new line."""
        if not getattr(self._tokenizer, "chat_template", None):
            return prompt.rstrip("\n") + "\n"
        text: str = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        return text

    def _encode(self, prompt: str) -> list[int]:
        token_ids: list[int] = self._tokenizer(self._text(prompt), add_special_tokens=False)["input_ids"]
        return token_ids

    def _batches(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Indices of prompts; number x longest <= batch_tokens."""
        batch: list[int] = []
        for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True):
            if batch and (len(batch) + 1) * len(prompts[batch[0]]) > self._batch_tokens:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _probabilities(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """[B, 2]: P(Yes) and P(No) as the next token of each prompt. Padded on the left, so that all next tokens are in
        the last column."""
        import torch

        longest = max(map(len, prompts))
        token_ids_BT = torch.tensor(
            [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=self._device)
        is_token_BT = torch.tensor(
            [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=self._device)
        positions_BT = (is_token_BT.cumsum(dim=1) - 1).clamp(min=0)
        with torch.inference_mode():
            logits_BV = self._model(
                input_ids=token_ids_BT, attention_mask=is_token_BT, position_ids=positions_BT, logits_to_keep=1,
                use_cache=False,
            ).logits[:, -1]
            probabilities: list[list[float]] = logits_BV.float().softmax(dim=-1)[:, self._verdict_tokens].tolist()
        return probabilities
