"""What a sampler can fail with and the user can mend."""


class SamplerError(RuntimeError):
    """No sampler as configured: something is not installed, not reachable, or serves something else. The message names
    the setting, what was seen and the remedy."""
