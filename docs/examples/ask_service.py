"""Asks a service over HTTP for a score of each completion. All questions of a step are asked at the same time."""

import asyncio
import json
import urllib.request

ATTEMPTS = 3


def post(url, question, completion, timeout_s):
    body = json.dumps({"question": question, "completion": completion}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        return float(json.load(response)["score"])


async def judged(*, question, completions, url, timeout_s=10.0, **columns):
    """The service's score. One that stays down is an error, never a score: it must not look like wrong answers."""
    async def ask(completion):
        for attempt in range(ATTEMPTS):
            try:
                return await asyncio.to_thread(post, url, question, completion, timeout_s)
            except OSError:
                if attempt == ATTEMPTS - 1:
                    raise
                await asyncio.sleep(0.2 * 2**attempt)

    return await asyncio.gather(*map(ask, completions))
