"""In which precision a server computes its logits: its log-probabilities tell, which keep the spacing of the logits.

Two tokens' log-probabilities at one position differ as their logits do. Rounded to bfloat16, with 8 significant bits,
logits above 1/8 are multiples of 2^-10, and so are their differences; of logits in float32 one difference in a hundred
is by chance, within the rounding of the log-probabilities themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

SPACING = 2.0 ** -10
TOLERANCE = 4e-6  # nats: twice the rounding of a float32 of 16 to 32


def rounded_to_bfloat16(positions: Sequence[Sequence[float]]) -> bool:
    """positions: of each the log-probabilities, in float32, of several tokens. False where nothing can be compared."""
    distances = [abs(difference / SPACING - round(difference / SPACING)) * SPACING
                 for first, *others in positions for other in others if (difference := first - other)]
    return sum(distance < TOLERANCE for distance in distances) > len(distances) / 2
