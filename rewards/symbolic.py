"""Computer algebra on two answers, by math-verify; runs inside the workers of rewards/workers.py only.

math-verify's own reading of plain expressions goes through sympy's parse_expr, which evaluates Python: an answer could run code.
Only its LaTeX reader is used here, a grammar that evaluates nothing. Its defaults accept decimals rounded to 6 places; here
numbers must agree to 30 digits, so that 1.414214 is not \\sqrt{2}.
"""

from __future__ import annotations

import logging
import re

_PLAIN = ((re.compile(r"\*\*"), "^"), (re.compile(r"(?<![\\A-Za-z])(sqrt|pi|infty|sin|cos|tan|log|ln|exp)(?![A-Za-z])"), r"\\\1"),
          (re.compile(r"\\sqrt\s?\(([^()]*+)\)"), r"\\sqrt{\1}"), (re.compile(r"\\sqrt\s?([0-9])"), r"\\sqrt{\1}"),
          (re.compile(r"\*"), r"\\cdot "), (re.compile("°"), r"^{\\circ}"))


def to_latex(text: str) -> str:
    """Sloppy but unambiguous plain notation (2*pi, sqrt(3), x**2) as LaTeX."""
    for pattern, new in _PLAIN:
        text = pattern.sub(new, text)
    return text


def algebraically_equal(first: str, second: str) -> bool:
    """Whether two cleaned LaTeX answers are equal.

    Symmetric: math-verify treats gold and answer differently, so it is asked both ways round.
    """
    from math_verify import LatexExtractionConfig, parse, verify

    # The workers' deadline replaces its alarm-based time-outs, about which it would warn on every call.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    parsed = [parse(f"${to_latex(text)}$", extraction_config=[LatexExtractionConfig()], fallback_mode="no_fallback",
                    parsing_timeout=None) for text in (first, second)]
    if not parsed[0] or not parsed[1]:
        return False
    return any(verify(gold, answer, float_rounding=30, numeric_precision=40, timeout_seconds=None)
               for gold, answer in (parsed, parsed[::-1]))
