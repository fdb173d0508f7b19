"""Completion text -> final answer, by stated rules, the first that finds something wins.

1. `boxed`: the last \\boxed{...} or \\fbox{...} with balanced braces, or `\\boxed 5`. Boxes with nothing but `$`,
   commas, "and", "or", names (`y_2 =`) or spaces between them form one list. Of nested boxes the innermost counts. When
   the last box is never closed (a completion cut short), nothing is found, and no later rule is asked: half an answer
   is not an answer.
2. `hash`: the rest of the line after the last `####` (GSM8K).
3. `answer_tag`: the last <answer>...</answer>.
4. `phrase`: what follows the last "answer is", "answer:", "correct option is", 答案是, 故选 and the like, to the end
   of its formula, sentence or line; or a last line `A: ...`.
5. `last_number`: the last number, only on request: in training it would pay for a number mentioned in passing.

A sentence in a box or behind a phrase ("the volume is 120") is cut down to the value that it states. What follows a
chat template's control token is no part of the completion. Nothing found is a case of its own (answer None, rule
`none`), never an empty string. Each rule is one pass over the text: the time is linear in its length. To add a rule,
write a function text -> answer | None and put it into RULES.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

Rule = Literal["boxed", "hash", "answer_tag", "phrase", "last_number", "none"]

_MAX_SENTENCE = 2000  # characters; a longer text is not searched for the value that it states


@dataclass(frozen=True, slots=True)
class Extraction:
    """answer: stripped and not empty, or None where nothing was found. rule: the rule that decided. written: the answer
    before a sentence was cut down to the value that it states."""

    answer: str | None
    rule: Rule
    written: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class _Box:
    start: int
    end: int
    content: str


_BRACES = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])(?P<open>\s*+\{)?|\\.|[{}]", re.DOTALL)
_PLAIN_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"[ \t]*+([^\s${}\\]++)")
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;]|\\[()\[\],;"
    r" ]|\\quad|\\text\{\s*(?:and|or)\s*\}|(?:and|or)\b|[A-Za-z](?:_\{?[A-Za-z0-9]{1,3}\}?)?\s?=)*+")
PHRASE = re.compile(
    r"\banswers?(?:\s{1,4}(?:to|for|of|in)\s[^\n.:=$\\]{1,60}?)?\s{1,4}(?:is|are|equals|(?:should|would|must|will)\s(?:\w{1,10}\s)?be)\b"
    r"|\banswers?\s?(?:\([^()\n]{0,30}\)\s?)?(?:\*\*)?\s{0,4}[:=]|\b(?:final\s)?(?:result|ans)\b(?:\*\*)?\s{0,4}[:=]"
    r"|(?:\A|\n)[#* \t]{0,8}(?:final\s)?(?:answer|result|ans)\b[* \t]{0,6}:?[* \t]{0,6}(?=\n)"
    r"|\bcorrect\s(?:option|choice|value|result)\s(?:is\b|:)|答案\s?(?:应该?|选|就)?\s?(?:是|为|选|:|：)|故选\s?(?:择)?\s?[:：]?|应选\s?[:：]?|(?<![\w])答\s?[:：]",
    re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?=\s|$)|[。！；\n]|,?\s(?:because|since|which|where|I\shope)\b")
_FORMULA = re.compile(r"\\\[(.+?)\\\]|\\\((.+?)\\\)|\$\$(.+?)\$\$|(?<![\\$])\$([^$]+)\$", re.DOTALL)
_CONTROL = re.compile(
    r"<\|(?:im_start|im_end|im_sep|endoftext|eot_id|end_of_text|start_header_id|end|eom_id)\|>|</s>|<eos>|<end_of_turn>"
)
_ROLE = re.compile(r"\s*(?:assistant|user|system|model)\b[:\n]?", re.IGNORECASE)
_TEXT_GROUP = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|math(?:rm|bf|it|sf)|mbox|hbox)\s?\{([^{}]*+)\}")
_COMMAND = re.compile(
    r"\\(?:begin|end)\s?\{[A-Za-z*]{1,12}\}(?:\{[lcr|\s]{0,20}\})?|\\[A-Za-z]+(?:name\{[a-z]{1,12}\})?")
_OPTION = re.compile(r"\(?[A-J][).:]\s.{0,100}")
_WORD = re.compile(r"(?<![A-Za-z\\])(?![A-Z]{1,4}(?![a-z]))[A-Za-z]{2,}(?![A-Za-z(])")  # AB and ABC are names
_LABEL = re.compile(
    r"\s*(?:the\s)?(?:(?:final\s)?(?:answer|result|ans)(?:\s*[:=]|(?=\s+[\\$0-9(]))|[A-Za-z][A-Za-z ]{2,30}:)\s+(?=\S)",
    re.IGNORECASE)
_CONNECTIVE = re.compile(
    r"\s*(?:and\s)?(?:so|thus|hence|therefore|then|finally|consequently|we\s(?:get|have|find|obtain)|it\sfollows\sthat)\b(?:\sthat)?"
    r"[,:]?\s+",
    re.IGNORECASE)
_FILLER = re.compile(
    r"(?:(?:therefore|thus|hence|then|just|simply|indeed|only|clearly|now|also|precisely|exactly|approximately|about|actually)\s|:\s?"
    r"|the\s(?:point|set|value|number|interval|pair|ordered\spair|ordered\striple|equation|function|matrix|vector|fraction|expression|integer)\s)+",
    re.IGNORECASE)
_TRAILING_CLAUSE = re.compile(r",\s+(?!and\b|or\b)[a-z]{3,}\b[^,]*$")
_NEGATION = re.compile(r"\b(?:not|cannot|never|except|neither|no)\b|n't\b", re.IGNORECASE)
_BOLD = re.compile(r"\*\*([^*]{1,200})\*\*")
_VERB = re.compile(
    r"\b(?:is|are|was|were|equals?|becomes?|be|gives?|yields?|get|have)\b"
    r"(?:\s(?:equal\sto|approximately|about|exactly|simply|just|given\sby))?[\s:]*", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?。！])\s+|\n")
_MATHEMATICAL = re.compile(r"[0-9\\$]")
_NUMBER = re.compile(r"(?<![0-9.])[-+]?[0-9][0-9,]*+(?:\.[0-9]++)?(?:/[0-9]++)?")


def _boxes(text: str) -> tuple[list[_Box], int]:
    """Innermost closed boxes in order of appearance, and the start of the last box that is never closed (-1: none)."""
    closed: list[_Box] = []
    open_braces: list[tuple[int, int]] = []  # (start of the box, or -1 for a plain brace; start of the content)
    for token in _BRACES.finditer(text):
        symbol = token.group()
        if symbol.startswith(("\\boxed", "\\fbox")):
            if token.group("open") is not None:
                open_braces.append((token.start(), token.end()))
            elif bare := _BARE_BOX.match(text, token.end()):
                closed.append(_Box(token.start(), bare.end(), bare.group(1).rstrip(".,;:")))
        elif symbol == "{":
            open_braces.append((-1, token.end()))
        elif symbol == "}" and open_braces:
            start, content = open_braces.pop()
            contains_a_box = bool(closed) and closed[-1].start > start
            if start >= 0 and not contains_a_box:
                closed.append(_Box(start, token.end(), text[content:token.start()]))
    return closed, max((start for start, _ in open_braces), default=-1)


def _last_boxes(text: str) -> tuple[str | None, bool]:
    """Content of the last run of adjacent boxes, and whether the text has any box at all."""
    if "\\boxed" not in text and "\\fbox" not in text:
        return None, False
    closed, unclosed_start = _boxes(text)
    if not closed or unclosed_start > closed[-1].start:
        return None, bool(closed) or unclosed_start >= 0
    run = [closed[-1]]
    for box in reversed(closed[:-1]):
        between = text[box.end:run[-1].start]
        if len(between) > 40 or not _BETWEEN_BOXES.fullmatch(between):
            break
        run.append(box)
    contents = list(dict.fromkeys(_without_braces(box.content.strip()) for box in reversed(run)))
    return ", ".join(content for content in contents if content), True


def _without_braces(content: str) -> str:
    """\\boxed{{52_8}}: braces around the whole content are grouping."""
    for _ in range(8):
        if not content.startswith("{"):
            break
        depth, at = 0, 0
        for brace in _PLAIN_BRACE.finditer(content):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                at = brace.end()
                break
        if at != len(content):
            break
        content = content[1:-1].strip()
    return content


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def _after_hashes(text: str) -> str | None:
    start = text.rfind("####")
    return None if start < 0 else text[start + 4:].lstrip("#").partition("\n")[0]


def _in_answer_tag(text: str) -> str | None:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return None if start < 0 else text[start + len("<answer>"):end]


def _after_phrase(text: str) -> str | None:
    last = _last_match(PHRASE, text)
    if last is None:
        last_line = text.rstrip().rpartition("\n")[2]
        return last_line[2:] if last_line.startswith("A:") else None
    rest = text[last.end():].lstrip(" \t\r\n:：*")
    formula = _FORMULA.match(rest) if rest[:2] in ("\\[", "\\(") or rest[:1] == "$" else None
    start = formula.end() if formula is not None else 0
    end = _SENTENCE_END.search(rest, start)
    return (rest if end is None else rest[:end.start()]).rstrip(" *,;")


def stated_value(text: str) -> str:
    """The value that a sentence states: "the volume is 120" -> "120"; text that is no sentence is returned as it is."""
    if len(text) > _MAX_SENTENCE:
        return text
    text = _BOLD.sub(r"\1", text)
    plain = _TEXT_GROUP.sub(r" \1 ", text)
    for opening in (_CONNECTIVE, _LABEL):
        if (found := opening.match(plain)) and _MATHEMATICAL.search(plain, found.end()):
            text = plain = plain[found.end():]
    if not _is_sentence(plain):
        return text
    verbs = list(_VERB.finditer(plain))
    after = plain[verbs[-1].end():].strip(" *") if verbs else ""
    about = plain[max(0, verbs[-1].start() - 8):verbs[-1].end() + 8] if verbs else plain
    if _NEGATION.search(about) or sum(bool(_MATHEMATICAL.match(plain, verb.end())) for verb in verbs) > 1:
        return text  # what it is not, or several values
    if filler := _FILLER.match(after):
        after = after[filler.end():]
    if _MATHEMATICAL.search(after):
        clause = _TRAILING_CLAUSE.search(after)
        return after[:clause.start()] if clause is not None and _MATHEMATICAL.search(after[:clause.start()]) else after
    if formula := _last_match(_FORMULA, plain):
        return formula.group()
    return after or text


def _is_sentence(text: str) -> bool:
    words = _WORD.findall(_COMMAND.sub(" ", _FORMULA.sub(" ", text)))
    if len(words) < 2 or text.lstrip()[:1].isdigit():
        return False
    return len(words) >= 3 or _VERB.search(text) is not None or _FORMULA.search(text) is not None


def bare_answer(text: str) -> str | None:
    """For grading, where no rule applies: the text itself, or the value that its last sentence states; None for no
    text.

    Differs from `extract` in that it also takes the last formula, and then the last number, of a sentence.
    """
    text = _completion(text).strip()
    plain = _TEXT_GROUP.sub(r" \1 ", text)
    is_sentence = len(text) > _MAX_SENTENCE or _is_sentence(plain) or _CONNECTIVE.match(plain) or _LABEL.match(plain)
    if not is_sentence or _OPTION.fullmatch(text):
        return text or None
    sentences = [sentence for sentence in _SENTENCE.split(text[-_MAX_SENTENCE:]) if sentence.strip(" .")]
    if not sentences:
        return text or None
    sentence = (
        next((sentence for sentence in reversed(sentences) if _MATHEMATICAL.search(sentence)), sentences[-1])
        .strip()
        .rstrip("."))
    value = stated_value(sentence)
    if value == sentence and not _NEGATION.search(sentence):
        formula = _last_match(_FORMULA, text[-2 * _MAX_SENTENCE:])
        value = formula.group() if formula is not None else _last_number(sentence) or sentence
    return value.strip() or None


def _completion(text: str) -> str:
    """The first part of a text that control tokens divide, without the role that a template puts before it."""
    if "<" not in text or _CONTROL.search(text) is None:
        return text
    for i, part in enumerate(_CONTROL.split(text)):
        role = _ROLE.match(part) if i else None
        if (content := part if role is None else part[role.end():]).strip():
            return content
    return ""


def _last_number(text: str) -> str | None:
    last = _last_match(_NUMBER, text)
    return None if last is None else last.group().rstrip(",")


RULES: tuple[tuple[Rule, Callable[[str], str | None]], ...] = (
    ("hash", _after_hashes), ("answer_tag", _in_answer_tag), ("phrase", _after_phrase))


def extract(text: str, last_number: bool = False) -> Extraction:
    """The final answer of a completion by the rules of the module docstring; last_number switches rule 5 on."""
    text = _completion(text)
    boxed, has_box = _last_boxes(text)
    if has_box:
        return Extraction(stated_value(boxed).strip() or None if boxed else None, "boxed", boxed)
    for rule, find in RULES:
        if written := (find(text) or "").strip():
            return Extraction(stated_value(written).strip() or written, rule, written)
    if last_number and (answer := _last_number(text) or ""):
        return Extraction(answer, "last_number")
    return Extraction(None, "none")


def extract_all(completions: Sequence[str], last_number: bool = False) -> list[Extraction]:
    """[G] completions -> [G] extractions."""
    return [extract(completion, last_number) for completion in completions]


def extract_answers(completions: Sequence[str], last_number: bool = False) -> list[str | None]:
    """[G] completions -> [G] answers."""
    return [extraction.answer for extraction in extract_all(completions, last_number)]


def rule_shares(extractions: Sequence[Extraction]) -> dict[str, float]:
    """Metrics: the share of the group whose answer each rule found, rules that found nothing in the group included."""
    counts = Counter(extraction.rule for extraction in extractions)
    return {f"extracted_by/{rule}": counts[rule] / len(extractions) for rule in get_args(Rule)}
