"""The longest batch that a configuration allows, made up: what Updater.rehearse runs before the first step on a GPU.

An out-of-memory error at step 40, when by chance the longest completions share a micro-batch, could have been foreseen.
"""

from __future__ import annotations

from rl.config import RunConfig
from rl.records import Group, Prompt, Question, Rollout, ScoredGroup, TrainingGroup

ANY_TOKEN = 0  # what the ids are changes neither time nor memory


def longest_groups(config: RunConfig, longest_prompt: int) -> list[TrainingGroup]:
    """Completions at the length limit, enough to fill one micro-batch, each a group of its own: those of one group with
    the same tokens would share a row. longest_prompt in tokens."""
    length = config.sampling.max_completion_tokens
    rollout = Rollout((ANY_TOKEN,) * length, (0.0,) * length, "", "length", policy_version=0, seed=0)
    prompt = Prompt(Question("rehearsal", "", None, {}), "", (ANY_TOKEN,) * longest_prompt)
    scored = ScoredGroup(Group(prompt, (rollout,)), (0.0,), {}, (None,), (0,), 0.0, {})
    # An advantage that is not zero: a group without one would be skipped.
    return [TrainingGroup(scored, (1.0,))] * max(1, config.optim.micro_batch_tokens // (longest_prompt + length - 1))
