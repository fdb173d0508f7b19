"""Rows of token ids -> log-probabilities and entropies of their completions' tokens, under the trained model.

A module of its own so that DistributedDataParallel can wrap it. The model's own output layer is called on the positions
that predict completion tokens only, in chunks (rl/policy/logprobs.py): the logits of whole sequences are never made.
`check_head` compares this path with the model's own forward once, before training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rewards.errors import named
from rl.policy.layout import layout_of
from rl.policy.logprobs import LogitHead, TokenLogprobs, chunk_tokens_for, token_logprobs
from rl.policy.policy import Policy, PolicyError
from rl.policy.rows import Layout, ModelRows, hidden_states, model_rows
from rl.records import PromptCompletion

CHECK_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}


class PolicyForward(nn.Module):
    """forward(rows) -> TokenLogprobs of the N tokens of the rows' completions; rows: on the model's device, from
    `rows`."""

    def __init__(self, policy: Policy, *, temperature: float, chunk_tokens: int | None = None) -> None:
        super().__init__()
        self.model = policy.model
        self._policy = policy
        self._temperature = temperature
        self._chunk_tokens = chunk_tokens or chunk_tokens_for(policy.causal_lm.get_output_embeddings().weight.shape[0])
        # Full parameters are kept in float32 and computed in the policy's dtype.
        self._autocast = policy.dtype != torch.float32 and not policy.is_adapter

    @property
    def layout(self) -> Layout:
        """In which layout the model reads."""
        return layout_of(self._policy.causal_lm)

    def rows(self, pairs: Sequence[PromptCompletion]) -> ModelRows:
        """Prompts and completions, as token ids, for this model and on its device."""
        device = next(self.model.parameters()).device
        return model_rows(pairs, self.layout, self._policy.eos_token_ids[0]).to(device)

    def forward(self, rows: ModelRows, *, entropy_grad: bool = False, self_certainty: bool = False) -> TokenLogprobs:
        with torch.autocast(rows.targets_N.device.type, dtype=self._policy.dtype, enabled=self._autocast):
            return self._compute(self._policy.causal_lm, rows, entropy_grad, self_certainty)

    @torch.no_grad()
    def reference(self, rows: ModelRows) -> Tensor:
        """Log-probabilities [N] under the reference: the adapter switched off, or the frozen copy."""
        model, context = self._policy.reference_model()
        # In the policy's own precision: otherwise rounding would look like divergence.
        with context, torch.autocast(rows.targets_N.device.type, dtype=self._policy.dtype, enabled=self._autocast):
            return self._compute(model, rows).logprobs_N

    def _compute(
        self, model: PreTrainedModel, rows: ModelRows, entropy_grad: bool = False, self_certainty: bool = False
    ) -> TokenLogprobs:
        layer = model.get_output_embeddings()
        is_frozen = not any(parameter.requires_grad for parameter in layer.parameters())
        return token_logprobs(
            hidden_states(model, rows), LogitHead(layer, *logit_settings(model), is_frozen=is_frozen), rows.targets_N,
            chunk_tokens=self._chunk_tokens, temperature=self._temperature, entropy_grad=entropy_grad,
            self_certainty=self_certainty)


def logit_settings(model: PreTrainedModel) -> tuple[float, float | None]:
    """(factor, softcap) that some families apply to their logits: Cohere, Granite, Gemma 2."""
    config = model.config
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    return float(scale), getattr(config, "final_logit_softcapping", None)


@torch.no_grad()
def check_head(forward: PolicyForward, policy: Policy, token_ids: tuple[int, ...], temperature: float) -> None:
    """Stop if our log-probabilities differ from those of the model's own forward: an architecture whose logits are
    post-processed in a way that we do not know would train on the wrong distribution, silently.

    token_ids: any prompt; one of a single token is read twice over, so that there is a token to predict."""
    device = next(policy.model.parameters()).device
    token_ids = token_ids if len(token_ids) > 1 else token_ids * 2
    ids = torch.tensor([token_ids], device=device)
    was_training = policy.model.training
    policy.model.eval()
    with torch.autocast(
        device.type, dtype=policy.dtype, enabled=policy.dtype != torch.float32 and not policy.is_adapter
    ):
        logits = policy.causal_lm(input_ids=ids, use_cache=False).logits[0, :-1]
    expected = torch.log_softmax(logits.float() / temperature, dim=-1).gather(1, ids[0, 1:, None]).squeeze(1)
    found = forward(forward.rows([(token_ids[:1], token_ids[1:])])).logprobs_N
    policy.model.train(was_training)
    difference = (expected - found).abs().mean().item()
    bound = CHECK_TOLERANCE[policy.dtype]
    if not difference <= bound:
        raise PolicyError(
            f"{named('model.path')}: the log-probabilities computed for training differ from the model's own by "
            f"{difference:.3g} nats on average (at most {bound} expected): {type(policy.causal_lm).__name__} "
            "post-processes its logits in a way that rl/policy/forward.py does not know. Remedy: add it to "
            "logit_settings there."
        )
