"""What is refused before a model is loaded."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from rl.errors import ConfigError
from rl.paths import resolve_path
from rl.questions.inputs import check_vocabulary
from tests.reference.tiny_run import prompts


def test_a_token_that_the_model_has_no_embedding_for_is_refused_with_its_question() -> None:
    config = AutoConfig.from_pretrained(resolve_path("models/tiny-arith"))
    asked = prompts(3)
    check_vocabulary(asked, config)
    config.vocab_size = max(max(prompt.token_ids) for prompt in asked)
    size = config.vocab_size
    with pytest.raises(ConfigError, match=rf"makes token {size} of question .* vocabulary of {size}"):
        check_vocabulary(asked, config)
