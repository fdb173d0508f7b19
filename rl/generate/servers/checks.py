"""What a server must have whoever asks it, and the errors that say what it lacks."""

from __future__ import annotations

from rl.errors import GeneratorError
from rl.generate.servers.client import ServedModel, ServerClient, ServerRefusedError


def refuse_key(client: ServerClient, error: ServerRefusedError) -> None:
    """Raises GeneratorError where the server has refused the API key."""
    if error.status in (401, 403):
        key = f"{client.role.section}.api_key_env"
        raise GeneratorError(
            f"{client.url} does not accept the API key ({error})", where=key,
            remedy=f"{key}=NAME of an environment variable that holds the server's key") from error


async def served_models(client: ServerClient) -> list[ServedModel]:
    """Raises GeneratorError where the address tells none, ServerLostError where it does not answer."""
    try:
        return await client.models()
    except ServerRefusedError as error:
        refuse_key(client, error)
        raise GeneratorError(
            f"{client.url}/v1/models: {error}. Expected the address of a `vllm serve` process",
            where=f"{client.role.section}.urls") from error


def check_room(client: ServerClient, room: int | None, needed: int, start: str) -> None:
    """room: tokens that the server takes, None where it does not say. needed: one more than the longest prompt with the
    longest completion, since the log-probabilities of these come with a token after them. start: how to start it."""
    if room is not None and room < needed:
        raise GeneratorError(
            f"{client.url} takes at most {room} tokens (max_model_len), but the longest prompt with the longest "
            f"completion and one token more are {needed}", where=f"{client.role.section}.urls",
            remedy=f"start it with {start}; or lower data.max_prompt_tokens or sampling.max_completion_tokens")
