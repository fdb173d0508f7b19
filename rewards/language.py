"""Completions -> the share of their letters in the question's script: R1's language consistency (arXiv:2501.12948).

Differs from the paper in that it counts letters of a Unicode script and not words of a language: no language detector,
the same number everywhere, but English and French are one. What is no language does not count: LaTeX commands,
mathematics between $...$, $$...$$, \\(...\\) or \\[...\\], tags such as <think>, and Latin or Greek letters that stand
alone (variables). To add a script: its name here, and the first word of its characters' Unicode names.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

from rewards.contract import GroupScore

SCRIPTS = {
    "latin": "LATIN",
    "han": "CJK",
    "kana": "HIRAGANA KATAKANA",
    "hangul": "HANGUL",
    "cyrillic": "CYRILLIC",
    "arabic": "ARABIC",
    "greek": "GREEK",
    "hebrew": "HEBREW",
    "devanagari": "DEVANAGARI",
    "bengali": "BENGALI",
    "tamil": "TAMIL",
    "telugu": "TELUGU",
    "thai": "THAI",
    "armenian": "ARMENIAN",
    "georgian": "GEORGIAN",
    "ethiopic": "ETHIOPIC"}
"""Script name -> first words of the Unicode names of its letters."""

_BY_FIRST_WORD = {word: script for script, words in SCRIPTS.items() for word in words.split()}
_MATH = re.compile(r"\$\$|\$|\\\(|\\\[")
_CLOSING = {"$$": "$$", "$": "$", "\\(": "\\)", "\\[": "\\]"}
_COMMAND_OR_TAG = re.compile(r"\\(?:begin|end)\{[a-z]{1,20}\*?\}|\\[A-Za-z]+|</?[A-Za-z]{1,20}>")
_ALPHABETIC = r"[A-Za-z\u00c0-\u024f\u0370-\u03ff]"  # Latin with its accents, and Greek
_VARIABLE = re.compile(f"(?<!{_ALPHABETIC}){_ALPHABETIC}(?!{_ALPHABETIC})")


def language_consistency(
    *, question: str, completions: list[str], script: str | None = None, **columns: object
) -> GroupScore:
    """r_i = letters of completion i in the wanted script / its letters, in [0, 1].

    script: the wanted one, a name in SCRIPTS; None takes the script that most of the question's letters have. Japanese
    is kana with han: a question with any kana wants both. A completion without letters gets 1: bare mathematics is in
    no wrong language; so do all where nothing says which script is wanted. Raises ValueError for an unknown script.
    """
    if script is not None and script not in SCRIPTS:
        raise ValueError(f"script is {script!r}, expected one of {', '.join(SCRIPTS)}")
    asked = count_scripts(question)
    target = script if script is not None else _main_script(asked)
    if target is None:
        return GroupScore([1.0] * len(completions))
    wanted = {"kana", "han"} if target == "kana" else {target}
    return GroupScore([_share(count_scripts(completion), wanted) for completion in completions])


def count_scripts(text: str) -> Counter[str]:
    """Letters of each script outside of what is no language; scripts without a name in SCRIPTS are counted as
    `other`."""
    prose = _VARIABLE.sub(" ", _COMMAND_OR_TAG.sub(" ", _without_math(unicodedata.normalize("NFKC", text))))
    counts: Counter[str] = Counter()
    for character, count in Counter(prose).items():
        if found := _script(character):
            counts[found] += count
    return counts


def _main_script(counts: Counter[str]) -> str | None:
    named = {script: count for script, count in counts.items() if script != "other"}
    if "kana" in named:
        named["kana"] += named.pop("han", 0)
    return max(named, key=lambda script: named[script], default=None)


def _share(counts: Counter[str], wanted: set[str]) -> float:
    total = counts.total()
    return sum(counts[script] for script in wanted) / total if total else 1.0


@lru_cache(maxsize=65536)
def _script(character: str) -> str | None:
    """None for what is no letter, and for modifier letters, which several scripts share."""
    if unicodedata.category(character) not in ("Lu", "Ll", "Lt", "Lo"):
        return None
    return _BY_FIRST_WORD.get(unicodedata.name(character, "").partition(" ")[0], "other")


def _without_math(text: str) -> str:
    """The text less its mathematics; an opening that is never closed opens nothing. Linear in the text's length."""
    parts, kept_from, never_closed = [], 0, set()
    for opening in _MATH.finditer(text):
        mark = opening.group()
        if opening.start() < kept_from or mark in never_closed:
            continue
        closing = text.find(_CLOSING[mark], opening.end())
        if closing < 0:
            never_closed.add(mark)  # looking again for each further one would be quadratic
            continue
        parts.append(text[kept_from:opening.start()])
        kept_from = closing + len(_CLOSING[mark])
    return " ".join([*parts, text[kept_from:]])
