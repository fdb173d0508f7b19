"""Look at runs, evaluations and pipelines in a browser: `python -m view RUN...`. Reads what they left, writes nothing
into their folders."""

from view.command import main

__all__ = ["main"]
