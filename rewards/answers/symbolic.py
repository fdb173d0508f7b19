"""Computer algebra on two answers, by math-verify; runs inside the workers of rewards/processes/pool.py only.

math-verify's own reading of plain expressions goes through sympy's parse_expr, which evaluates Python: an answer could
run code. Only its LaTeX reader is used here, a grammar that evaluates nothing. Its defaults accept decimals rounded to
6 places; here numbers must agree to 30 digits, so that 1.414214 is not \\sqrt{2}.
"""

from __future__ import annotations

import logging
import re

_PLAIN = (
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<![\\A-Za-z])(sqrt|pi|infty|sin|cos|tan|log|ln|exp)(?![A-Za-z])"), r"\\\1"),
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

# First calls of the workers' template, one for each kind of answer, so that imports, parser tables and caches are ready
# in every worker.
WARM_UP = [
    (r"\frac{x}{2}+\sqrt{3}", r"\frac{1}{2}x+3^{1/2}"),
    ("x^2-1", "(x-1)(x+1)"),
    ("(1,2]", "(1,3]"),
    (r"\{1,2\}", r"\{2,3\}"),
    ("x=2y+1", "2y=x-1"),
    ("x<3", r"x\le 3"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}"),
    (r"\sin(x)+\pi", r"\cos(x)+e^{x}"),
    (r"\log_2 3", r"\frac{\ln 3}{\ln 2}"),
    ("3+2i", "3-2i"),
    (r"(-\infty,1)\cup(2,3)", r"(2,3)\cup(-\infty,1)"),
    (r"5\text{ cm}", "5"),
    ("10!", r"\binom{5}{2}"),
]
