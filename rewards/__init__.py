"""Reward functions and what they stand on: extraction, equivalence, clustering. Imports neither rl nor torch."""

from rewards.contract import GroupScore, RewardError

__all__ = ["GroupScore", "RewardError"]
