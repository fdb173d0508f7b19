"""An answer as written -> cleaned LaTeX: one spelling for what looks the same on paper.

Full-width and Unicode symbols become ASCII or LaTeX commands, invisible characters and sizing commands go, spacing
commands become spaces, wrappers around the whole answer ($...$, \\boxed{...}, **...**) are taken off. What stood in
\\text{...} is kept between two private marks, because a unit may be one letter only in there. To teach it another
spelling, extend the tables.
"""

from __future__ import annotations

import re

TEXT_OPEN, TEXT_CLOSE = "\ue000", "\ue001"

_UNICODE: dict[int, str] = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full-width forms
_UNICODE |= str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ",
        "∙": "\\cdot ", "÷": "/", "√": "\\sqrt ", "∛": "\\sqrt[3] ", "≤": "\\le ", "⩽": "\\le ", "≥": "\\ge ",
        "⩾": "\\ge ", "≠": "\\neq ", "≈": "\\approx ", "≡": "\\equiv ", "±": "\\pm ", "∓": "\\mp ", "∞": "\\infty ",
        "∪": "\\cup ", "∩": "\\cap ", "∅": "\\emptyset ", "∈": "\\in ", "∖": "\\setminus ", "ℝ": "\\mathbb{R}",
        "ℤ": "\\mathbb{Z}", "ℕ": "\\mathbb{N}", "ℚ": "\\mathbb{Q}", "½": "\\frac{1}{2}", "⅓": "\\frac{1}{3}",
        "⅔": "\\frac{2}{3}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}", "⁰": "^0", "¹": "^1", "²": "^2", "³": "^3",
        "⁴": "^4", "⁵": "^5", "⁶": "^6", "⁷": "^7", "⁸": "^8", "⁹": "^9", "⁻": "^-", "ⁿ": "^n", "₀": "_0", "₁": "_1",
        "₂": "_2", "₃": "_3", "₄": "_4", "₅": "_5", "₆": "_6", "₇": "_7", "₈": "_8", "₉": "_9", "⌊": "\\lfloor ",
        "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "⟨": "\\langle ", "⟩": "\\rangle ", "∠": "\\angle ",
        "△": "\\triangle ", "′": "'", "’": "'", "‘": "'", "“": '"', "”": '"', "\u00a0": " ", "\u2009": " ",
        "\u202f": " ", "¯": "", "\u3000": " ", "，": ",", "、": ",", "。": ".", "º": "°", "˚": "°", "℃": "°C",
        "％": "%"})
_UNICODE |= {
    ord(letter): f"\\{name} "
    for letter, name in {
        "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "θ": "theta", "λ": "lambda", "μ": "mu",
        "ν": "nu", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi", "ω": "omega", "ϕ": "phi", "Δ": "Delta",
        "Ω": "Omega", "Φ": "Phi", "Σ": "Sigma", "Γ": "Gamma", "Λ": "Lambda", "Π": "Pi",
    }.items()}
# Control characters, zero-width characters, marks of writing direction, and the two private marks used here.
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ue000\ue001]")
_TEXT_COMMAND = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|mathrm|mathbf|mathit|mathsf|mathtt|boldsymbol|bm|mbox|hbox|textup|emph)\s{0,4}\{([^{}]*+)\}"
)
_FUNCTION_NAMES = frozenset(
    (
        "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln",
        "exp", "max", "min", "gcd", "lcm", "det", "deg", "lg"))
_ALPHABETS = ("\\mathbf", "\\boldsymbol", "\\bm", "\\mathit", "\\mathsf")
_UNIT_LIKE = frozenset(("min", "max", "sec", "deg"))  # in \\text{}: minutes, seconds
_OPERATOR_NAME = re.compile(r"\\(?:operatorname\*?|mathop)\s{0,4}\{\s{0,4}([A-Za-z]{1,20})\s{0,4}\}")
_SUBSTITUTIONS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (
            r"\\(?:left|right|middle|displaystyle|textstyle|limits|nolimits|[bB]igg?[lrm]?|hfill|null|notag|nonumber|centering)(?![A-Za-z])",
            ""),
        (r"\\[hv]space\*?\s{0,4}\{[^{}]*+\}|\\(?:hphantom|vphantom|phantom)\s{0,4}\{[^{}]*+\}", " "),
        (r"(?<!\\)\\!\s?", ""),
        (r"\{,\}", ","),
        (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![A-Za-z])|\\(?:thinspace|enspace|medspace)(?![A-Za-z])", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"\^\s{0,2}\{\s{0,2}\\circ\s{0,2}\}|\^\s{0,2}\\circ(?![A-Za-z])|\\degree(?![A-Za-z])", "°"),
        (r"(?<!\\)\\([%$#&])", r"\1"),
        (r"\\(?:leq|leqslant|leqq)(?![A-Za-z])", r"\\le"),
        (r"\\(?:geq|geqslant|geqq)(?![A-Za-z])", r"\\ge"),
        (r"\\(?:ne|not\s?=)(?![A-Za-z])", r"\\neq"),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"(?<![0-9)}])!=(?!=)", r"\\neq "),
        (r"\\(?:varnothing|O)(?![A-Za-z])", r"\\emptyset"),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:backslash|smallsetminus)(?![A-Za-z])", r"\\setminus"),
        (r"\\(?:lvert|rvert|vert|mid)(?![A-Za-z])", "|"),
        (r"\\colon(?![A-Za-z])", ":"),
        (r"\\textdollar(?![A-Za-z])", "$"),
        (r"\*\*$", ""),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\(?:cdotp|ast|bullet)(?![A-Za-z])", r"\\cdot "),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\\mathbb\s?([RZNQC])(?![A-Za-z])", r"\\mathbb{\1}"),
        (r"\\(?:mathcal|mathscr|mathfrak)(?![A-Za-z])", ""),
        (r"\\var(?=epsilon|theta|phi|rho|sigma|pi)", r"\\"),
        (r"\\(?:therefore|because|implies|Rightarrow)(?![A-Za-z])", " "),
        (r"\s++", " ")))
_WRAPPERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"), ('"', '"'))
_BOXES = ("\\boxed{", "\\fbox{")
_TEXT_OF_MATHEMATICS = ("\\text{\\[", "\\text{\\(", "\\text{$")
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ]{2,}")
# After the first cleaning: other notations of what has one here already.
_NOTATIONS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"([0-9]*\.[0-9]*)\\(?:bar|dot)\s?\{?([0-9]{1,20})\}?", r"\1\\overline{\2}"),
        (r"(?<![0-9.])([0-9]{1,20}\.[0-9]{0,6}?)([0-9]{1,3}?)\2{2,9}\s?\\dots\s?$", r"\1\\overline{\2}"),
        (r"(?<![A-Za-z0-9\\])oo(?![A-Za-z0-9])", r"\\infty "),
        (r"(?<![A-Za-z\\])C\(([0-9]{1,9}),\s?([0-9]{1,9})\)", r"\\binom{\1}{\2}"),
        (r"(?<![A-Za-z\\}])C_\{?([0-9]{1,9})\}?\^\{?([0-9]{1,9})\}?", r"\\binom{\1}{\2}"),
        (r"(?:\{\s?\})?_\{?([0-9]{1,9})\}?\s?C_\{?([0-9]{1,9})\}?", r"\\binom{\1}{\2}"),
        (rf"_\s?\{{{TEXT_OPEN}\s?base\s?{TEXT_CLOSE}?\s?([0-9]{{1,2}})\s?{TEXT_CLOSE}?\s?\}}", r"_{\1}"),
        (
            rf"\s?\(?{TEXT_OPEN}?\s?\(?(?<![A-Za-z])base\s?{TEXT_CLOSE}?\s?([0-9]{{1,2}})\s?\)?\s?{TEXT_CLOSE}?\)?$",
            r"_{\1}"),
        (r"^(?:USD|US\$)\s?(?=[0-9.])", "$"),
        (r"^(?:Rs\.?|INR|EUR|RMB)\s?(?=[0-9.])", "")))
_DOTS = re.compile(r"\\[ld]?dots[cbmio]?(?![A-Za-z])|\\cdots(?![A-Za-z])|\.{3,}|…")
_BOLD_OPTION = re.compile(r"\*\*(\(?[A-J]\)?[.):]?)\*\*")
_STYLE = re.compile(
    r"\\(?:textcolor|color)\s?(?:\[[^\]]{0,20}\])?\{[^{}]{0,30}\}|\\(?:large|Large|LARGE|huge|Huge|small|tiny|normalsize|bf|rm|it|strut)(?![A-Za-z])"
)
_ESCAPED_TWICE = re.compile(
    r"(?<!\\)\\\\(?=(?:[dt]?frac|sqrt|text|pi|left|right|cdot|times|infty|cup|boxed|pm|circ|leq?|geq?)(?![A-Za-z]))")
_INLINE_MATH = re.compile(r"(?<!\\)\$")
_BRACKETS = re.compile(r"\\[{}]|\\[^{}]|[(\[{)\]}]", re.DOTALL)  # "\\(" is none
_PARENTHESES = re.compile(r"(?<!\\)\\[()\[\]]")


def clean(answer: str) -> str:
    """The answer in one spelling; never raises, linear in its length."""
    text = _SUPERSCRIPTS.sub(
        lambda run: "^{" + run.group().translate(_UNICODE).replace("^", "") + "}", _INVISIBLE.sub("", answer))
    text = _DOTS.sub(r"\\dots ", text.translate(_UNICODE)).strip()
    if "\\" in text:
        text = _STYLE.sub(" ", text).strip()
    text = _without_wrappers(_BOLD_OPTION.sub(r"\1", _ESCAPED_TWICE.sub(r"\\", text)))
    if text.replace("\\$", "").count("$") % 2 == 0:
        text = _INLINE_MATH.sub(" ", text)
    text = _OPERATOR_NAME.sub(lambda found: _named_operator(found.group(1)), text)
    for _ in range(3):  # \text{\textbf{B}}
        text, count = _TEXT_COMMAND.subn(_marked, text)
        if not count:
            break
    text = _PARENTHESES.sub(" ", text)
    for pattern, new in (*_SUBSTITUTIONS, *_NOTATIONS):
        text = pattern.sub(new, text)
    return _without_wrappers(text.strip())


def _without_wrappers(text: str) -> str:
    for _ in range(8 if len(text) < 10_000 else 1):
        before = text
        for opening, closing in _WRAPPERS:
            if (len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing)
                    and opening not in text[len(opening):-len(closing)]):
                text = text[len(opening):-len(closing)].strip()
        for command in _BOXES:
            if text.startswith(command) and matching(text, len(command) - 1) == len(text) - 1:
                text = text[len(command):-1].strip()
                if text.startswith("{") and matching(text, 0) == len(text) - 1:
                    text = text[1:-1].strip()
        if text.startswith(_TEXT_OF_MATHEMATICS) and matching(text, len("\\text")) == len(text) - 1:
            text = text[len("\\text{"):-1].strip()
        if text.startswith("{") and "," not in text and matching(text, 0) == len(text) - 1:
            text = text[1:-1].strip()
        # A full stop ends the sentence; one that follows "p.m" belongs to it, and as a unit both are the same.
        text = text.rstrip(".,;: ") if not text.endswith("\\,") else text[:-2]
        if text.endswith("\\"):  # what is left of "\\;" or of a line break
            text = text.rstrip("\\ ")
        if text == before:
            break
    return text


def matching(text: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`, -1 if none does. All kinds nest; (1, 2] closes."""
    depth = 0
    for found in _BRACKETS.finditer(text, start):
        symbol = found.group()
        if symbol in ("(", "[", "{", "\\{"):
            depth += 1
        elif symbol in (")", "]", "}", "\\}"):
            depth -= 1
            if depth == 0:
                return found.end() - 1
    return -1


def unmark(text: str) -> str:
    """The text without the marks of what stood in \\text{...}."""
    return re.sub(r"\s++", " ", text.replace(TEXT_OPEN, " ").replace(TEXT_CLOSE, " ")).strip()


def _named_operator(name: str) -> str:
    return f"\\{name} " if name in _FUNCTION_NAMES else f"{TEXT_OPEN}{name}{TEXT_CLOSE}"


def _marked(found: re.Match[str]) -> str:
    """\\mathrm{sin} is a function, \\mathrm{i} the imaginary unit, \\mathbf{v} a letter; the rest is text."""
    content = found.group(1).strip(TEXT_OPEN + TEXT_CLOSE)
    is_unit = content.strip() in _UNIT_LIKE and (
        "text" in found.group()[:6]
        or found.string[: found.start()].rstrip(" ~\\,;")[-1:].isdigit()
        or found.string[found.start() - 2 : found.start()] == "_{")
    if content.strip() in _FUNCTION_NAMES and not is_unit:
        return f"\\{content.strip()} "
    if "math" in found.group()[:6] and content.strip() in ("i", "e", "d"):
        return content
    if found.group().startswith(_ALPHABETS) and len(content.strip()) == 1:
        return content
    content = content.replace(TEXT_OPEN, " ").replace(TEXT_CLOSE, " ")
    if content.strip() and not any(map(str.isalpha, content)):
        return content  # \\text{27}
    return f"{TEXT_OPEN}{content}{TEXT_CLOSE}"
