"""Which errors are the user's to mend: shown as one message without a traceback. All others are ours and keep theirs."""

from __future__ import annotations

import sys


def user_errors() -> tuple[type[BaseException], ...]:
    """The classes, of the modules loaded so far: what is not loaded cannot have raised, and loading it would cost seconds."""
    names = {
        "rl.config_loading": "ConfigError", "rl.run_folder": "RunFolderError", "rl.data": "DataError", "rl.prompting": "PromptError",
        "rewards.contract": "RewardError", "rl.checkpoint": "CheckpointError", "rl.policy": "PolicyError",
        "rl.tracking": "JsonLinesError", "rl.trainer": "SamplerMismatchError",
    }
    own = tuple(getattr(sys.modules[module], name) for module, name in names.items() if module in sys.modules)
    return (*own, OSError, FloatingPointError, KeyboardInterrupt)
