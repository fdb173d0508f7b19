"""A reward as one writes it for TRL's GRPOTrainer: a flat batch, columns as lists, None for "no opinion"."""


def ends_early(prompts, completions, completion_ids, limit=40, **kwargs):
    rewards = []
    for completion, ids in zip(completions, completion_ids, strict=True):
        rewards.append(None if not completion.strip() else 1.0 - min(len(ids), limit) / limit)
    return rewards
