"""Cleaned LaTeX, or plain notation, of one expression -> a tree of terms, or None for what this grammar does not know.

    parse("2\\sqrt3 + x^2/4") -> Term("+", (...))

A grammar of its own because answers are sloppy but unambiguous (\\frac12, \\sqrt3, 2pi, sqrt(3), x*y, 2√5), and because
nothing here may execute anything, recurse without bound or take more than linear time: sympy's readers do all three.
What is missing (infinite sums, integrals, limits, modular arithmetic) is left to rewards/answers/symbolic.py.
Conventions: `log` without a base is base 10; \\frac919 is 9/19; \\sqrt12 is the root of 12; 1/2x is x/2; an integer
before a fraction of integers below 1 is a mixed number; letters beside each other are a product, except for the names
of functions. To add a function, name it in FUNCTIONS and give its value in rewards/answers/values.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

from rewards.answers.notation import TEXT_CLOSE, TEXT_OPEN
from rewards.answers.terms import Term, number

MAX_LENGTH = 1000  # characters
_MAX_CACHED = 300  # characters
_MAX_DEPTH = 40


FUNCTIONS = frozenset(
    (
        "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln",
        "lg", "exp", "max", "min", "gcd", "lcm", "abs", "floor", "ceil", "factorial", "binom", "degrees"))
_NAMED = FUNCTIONS - {"abs", "floor", "ceil", "factorial", "binom", "degrees"}
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_PLAIN_WORDS = {
    "sqrt": "\\sqrt", "pi": "\\pi", "infty": "\\infty", "infinity": "\\infty", "asin": "\\arcsin", "acos": "\\arccos",
    "atan": "\\arctan", "abs": "abs", "floor": "floor", "ceil": "ceil", "theta": "\\theta", "alpha": "\\alpha",
    "beta": "\\beta", "inf": "\\infty"}
_GREEK = frozenset(
    (
        "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu",
        "xi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi",
        "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega", "ell", "hbar", "aleph", "nabla"))
_ACCENTS = frozenset(
    (
        "vec", "hat", "bar", "overline", "overrightarrow", "widehat", "tilde", "widetilde", "underline", "dot", "ddot",
        "angle", "triangle"))
_TOKEN = re.compile(
    r"\s*+(?:(?P<number>[0-9]{1,3}(?:,[0-9]{3})++(?:\.[0-9]++)?(?![0-9])|[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)|(?P<command>\\[A-Za-z]++)"
    rf"|{TEXT_OPEN}(?P<text>[^{TEXT_CLOSE}]*+){TEXT_CLOSE}|(?P<word>[A-Za-z]++)|(?P<symbol>\*\*|\\[{{}}]|[-+*/^_!'()\[\]{{}}|,°%=]))"
)
_WORD_FUNCTIONS = re.compile("|".join(sorted((*(_NAMED | set(_PLAIN_WORDS)),), key=len, reverse=True)))


class _UnknownError(Exception):
    """The text is no expression of this grammar."""


def parse(text: str) -> Term | None:
    """The tree of `text`, None if it is longer than MAX_LENGTH or not of this grammar."""
    if not text or len(text) > MAX_LENGTH:
        return None
    return _cached(text) if len(text) <= _MAX_CACHED else _parse(text)


def _parse(text: str) -> Term | None:
    try:
        return _Parser(_tokens(text)).whole()
    except _UnknownError:
        return None


_cached = lru_cache(maxsize=16384)(_parse)


def _tokens(text: str) -> list[str]:
    """Commands keep their backslash, text its opening mark; words are cut into names of functions and single
    letters."""
    tokens: list[str] = []
    at = 0
    end = len(text.rstrip())
    while at < end:
        found = _TOKEN.match(text, at)
        if found is None:
            raise _UnknownError
        at = found.end()
        if (word := found.group("word")) is not None:
            tokens.extend(_cut(word))
        elif found.group("text") is not None:
            tokens.append(TEXT_OPEN + found.group("text").strip())
        else:
            tokens.append(found.group("number") or found.group("command") or found.group("symbol"))
    return tokens


def _cut(word: str) -> list[str]:
    pieces: list[str] = []
    at = 0
    while at < len(word):
        if named := _WORD_FUNCTIONS.match(word, at):
            pieces.append(_PLAIN_WORDS.get(named.group(), "\\" + named.group()))
            at = named.end()
        else:
            pieces.append(word[at])
            at += 1
    return pieces


class _Parser:
    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0
        self._indices: list[str] = []  # of the sums around: i is one of them there, and no imaginary unit
        self._bars = 0  # how many |...| are open: in there a bar closes

    def whole(self) -> Term:
        result = self._sum()
        if self._at != len(self._tokens):
            raise _UnknownError
        return result

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        if not token:
            raise _UnknownError
        self._at += 1
        return token

    def _take(self, *tokens: str) -> bool:
        if self._peek() in tokens and self._peek():
            self._at += 1
            return True
        return False

    def _expect(self, token: str) -> None:
        if not self._take(token):
            raise _UnknownError

    def _nested(self, read: Callable[[], Term], closing: str) -> Term:
        """What `read` reads up to the closing token, one level deeper; bars outside of it do not count inside."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _UnknownError
        bars, self._bars = self._bars, 1 if closing == "|" else 0
        result = read()
        self._expect(closing)
        self._bars = bars
        self._depth -= 1
        return result

    def _sum(self) -> Term:
        summands = [self._product()]
        while self._peek() in ("+", "-"):
            negative = self._next() == "-"
            summand = self._product()
            summands.append(Term("negate", (summand,)) if negative else summand)
        result = Term("+", tuple(summands)) if len(summands) > 1 else summands[0]
        if self._take("\\choose"):
            result = Term("binom", (result, self._sum()))
        return result

    def _product(self) -> Term:
        factors = [self._mixed_number() or self._signed()]
        while True:
            if self._take("*", "\\cdot", "\\times"):
                factors.append(self._signed())
            elif self._take("/"):
                factors.append(Term("invert", (self._signed(),)))
            elif self._starts_factor():
                factors.append(self._power())
            else:
                return Term("*", tuple(factors)) if len(factors) > 1 else factors[0]

    def _mixed_number(self) -> Term | None:
        """3\\frac{1}{2}: an integer, then a fraction of integers that is below 1."""
        ahead = self._tokens[self._at:self._at + 8]
        if len(ahead) < 3 or not ahead[0].isdigit() or ahead[1] != "\\frac":
            return None
        if ahead[2] == "{" and [*ahead[4:6], *ahead[7:8]] == ["}", "{", "}"]:
            over, under, length = ahead[3], ahead[6], 8
        elif ahead[2].isdigit() and len(ahead[2]) > 1:
            over, under, length = ahead[2][0], ahead[2][1:], 3
        elif ahead[2].isdigit() and len(ahead) > 3:
            over, under, length = ahead[2], ahead[3], 4
        else:
            return None
        follows = self._tokens[self._at + length:self._at + length + 1]
        if (
            not (over.isdigit() and under.isdigit())
            or max(map(len, (ahead[0], over, under))) > 300
            or follows in (["^"], ["!"])
        ):
            return None
        if not 0 < int(over) < int(under) or not int(ahead[0]):
            return None
        self._at += length
        return number(int(ahead[0]) + Fraction(int(over), int(under)))

    def _signed(self) -> Term:
        negative = False
        while self._peek() in ("+", "-"):
            negative ^= self._next() == "-"
        result = self._power()
        return Term("negate", (result,)) if negative else result

    def _starts_factor(self) -> bool:
        token = self._peek()
        if token == "|":
            return not self._bars
        return bool(token) and (token[0].isalnum() or token[0] in ".([{" + TEXT_OPEN or (
            token[0] == "\\" and token not in ("\\cdot", "\\times", "\\choose", "\\rfloor", "\\rceil", "\\{", "\\}")))

    def _power(self) -> Term:
        base = self._atom()
        for _ in range(_MAX_DEPTH):
            if self._take("^", "**"):
                base = Term("^", (base, self._exponent()))
            elif self._take("!"):
                if self._peek() == "!":
                    raise _UnknownError  # a double factorial
                base = Term("factorial", (base,))
            elif self._take("°"):
                base = Term("degrees", (base,))
            elif self._take("%"):
                base = Term("/", (base, number(100)))
            else:
                return base
        raise _UnknownError

    def _exponent(self) -> Term:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _UnknownError
        negative = self._take("-")
        if not negative:
            self._take("+")
        if self._take("{"):
            result = self._nested(self._sum, "}")
        else:
            result = self._atom()
            if self._take("^", "**"):  # 2^3^2 written plainly is 2^(3^2)
                result = Term("^", (result, self._exponent()))
        self._depth -= 1
        return Term("negate", (result,)) if negative else result

    def _atom(self) -> Term:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _UnknownError
        result = self._atom_of(self._next())
        self._depth -= 1
        return result

    def _atom_of(self, token: str) -> Term:
        if token[0].isdigit() or token[0] == ".":
            return self._number(token)
        if token in ("(", "["):
            return self._nested(self._sum, ")" if token == "(" else "]")
        if token == "{":
            return self._nested(self._sum, "}")
        if token == "|":
            return Term("abs", (self._nested(self._sum, "|"),))
        if token[0] == TEXT_OPEN:
            if token[1:] == "i":
                return Term("constant", name="i")
            return self._variable("text " + token[1:] if len(token) != 2 else token[1:])
        if token[0] == "\\":
            return self._command(token[1:])
        if token in ("e", "i") and token not in self._indices:
            return self._constant_or_variable(token)
        if token in ("abs", "floor", "ceil"):
            self._expect("(")
            return Term(token, (self._nested(self._sum, ")"),))
        if token.isalpha():
            return self._variable(token)
        raise _UnknownError

    def _number(self, token: str) -> Term:
        if self._peek() in ("_", "\\overline") or len(token) > 300:  # a base, a repeating decimal, a hostile length
            raise _UnknownError
        return number(Fraction(token.replace(",", "").rstrip(".")))

    def _constant_or_variable(self, name: str) -> Term:
        return self._variable(name) if self._peek() in ("_", "'") else Term("constant", name=name)

    def _variable(self, name: str) -> Term:
        """A name with its subscripts and primes."""
        if name in ("f", "g", "h") and self._peek() == "(":  # a call: f(2) is not 2f
            return Term("variable", name=name + self._raw_call())
        self._subscript_first()
        while True:
            if self._take("_"):
                name += "_" + self._raw()
            elif self._take("'"):
                name += "'"
            elif self._peek() == "^" and self._tokens[self._at + 1:self._at + 2] == ["\\prime"]:
                self._at += 2
                name += "'"
            elif self._tokens[self._at : self._at + 2] == ["^", "{"] and self._tokens[self._at + 2 : self._at + 3] in (
                ["\\prime"], ["*"],
            ):
                self._at += 1
                name += self._raw().replace("\\prime", "'")
            elif self._tokens[self._at:self._at + 2] == ["^", "*"]:
                self._at += 2
                name += "*"
            else:
                return Term("variable", name=name)

    def _subscript_first(self) -> None:
        """v^2_0 is (v_0)^2: puts the subscript's tokens before the exponent's."""
        if self._peek() not in ("^", "'"):
            return
        ends = self._group_end(self._at + 1)
        if self._peek() == "^" and self._tokens[ends:ends + 1] == ["_"]:
            after = self._group_end(ends + 1)
            self._tokens[self._at:after] = [*self._tokens[ends:after], *self._tokens[self._at:ends]]

    def _group_end(self, start: int) -> int:
        """Index behind the group or single token that begins at `start`."""
        if self._tokens[start:start + 1] != ["{"]:
            return start + 1
        depth = 0
        for at in range(start, len(self._tokens)):
            depth += (self._tokens[at] == "{") - (self._tokens[at] == "}")
            if depth == 0:
                return at + 1
        raise _UnknownError

    def _raw_call(self) -> str:
        """(x, 2) as written, brackets included."""
        pieces, depth = [], 0
        while True:
            pieces.append(token := self._next())
            depth += (token == "(") - (token == ")")
            if depth == 0:
                return "".join(piece.lstrip(TEXT_OPEN) for piece in pieces)

    def _raw(self) -> str:
        """A group or one token, as written: {min}, 2."""
        if not self._take("{"):
            return self._next().lstrip(TEXT_OPEN)
        pieces: list[str] = []
        depth = 1
        while True:
            token = self._next()
            depth += (token == "{") - (token == "}")
            if depth == 0:
                return "".join(pieces)
            if token not in "{}":
                pieces.append(token.lstrip(TEXT_OPEN))

    def _command(self, name: str) -> Term:
        if name == "frac":
            return self._fraction()
        if name == "sqrt":
            return self._root()
        if name == "binom":
            return Term("binom", (self._argument(), self._argument()))
        if name in ("sum", "prod"):
            return self._sum_over(name)
        if name == "pi":
            return self._variable("pi") if self._peek() == "_" else Term("constant", name="pi")
        if name == "infty":
            return Term("constant", name="infinity")
        if name in ("lfloor", "lceil"):
            return Term("floor" if name == "lfloor" else "ceil", (self._nested(self._sum, "\\r" + name[1:]),))
        if name in _GREEK:
            return self._variable("\\" + name)
        if name in _ACCENTS:
            letters = self._raw()
            while name in ("angle", "triangle") and self._peek().isalpha() and len(self._peek()) == 1:
                letters += self._next()
            return self._variable(f"\\{name} {letters}")
        if name in _NAMED:
            return self._function(name)
        raise _UnknownError

    def _sum_over(self, name: str) -> Term:
        """\\sum_{k=1}^{n} of the product that follows."""
        if not self._take("_"):
            raise _UnknownError
        self._expect("{")
        index = self._next()
        self._expect("=")
        if not index.isalpha():
            raise _UnknownError
        low = self._nested(self._sum, "}")
        if not self._take("^"):
            raise _UnknownError
        high = self._argument()
        if len(self._indices) >= 2:
            raise _UnknownError
        self._indices.append(index)
        body = self._product()
        self._indices.pop()
        return Term(name, (low, high, body), name=index)

    def _fraction(self) -> Term:
        token = self._peek()
        if token.isdigit() and len(token) > 1:  # \frac12, \frac919: one digit over the others
            self._tokens[self._at:self._at + 1] = [token[0], token[1:]]
        return Term("/", (self._argument(), self._argument()))

    def _argument(self) -> Term:
        if self._take("{"):
            return self._nested(self._sum, "}")
        return self._atom()

    def _root(self) -> Term:
        degree = number(2)
        if self._take("["):
            degree = self._nested(self._sum, "]")
        return Term("root", (degree, self._argument()))

    def _function(self, name: str) -> Term:
        base: Term | None = None
        power: Term | None = None
        for _ in range(2):  # \log_2^3 x
            if base is None and self._take("_"):
                base = self._argument()
            elif power is None and self._take("^"):
                power = self._exponent()
        if name in ("max", "min", "gcd", "lcm"):
            if base is not None or power is not None:
                raise _UnknownError
            return Term(name, self._list())
        if base is not None and name != "log":
            raise _UnknownError
        if power == Term("negate", (number(1),)) and name in _INVERSE:
            name, power = _INVERSE[name], None
        argument = self._function_argument()
        result = Term("log", (base or number(10), argument)) if name in ("log", "lg") else Term(name, (argument,))
        return result if power is None else Term("^", (result, power))

    def _list(self) -> tuple[Term, ...]:
        closing = {"(": ")", "\\{": "\\}", "{": "}", "[": "]"}.get(self._next())
        if closing is None:
            raise _UnknownError
        items = []
        while True:
            items.append(self._sum())
            if self._take(closing):
                return tuple(items)
            self._expect(",")

    def _function_argument(self) -> Term:
        """A group, or the factors that follow up to the next sign, function or bracket: sin 2x cos y is sin(2x)
        cos(y)."""
        if self._peek() in ("(", "[", "{", "|"):
            return self._atom()
        negative = self._take("-")
        result = self._mixed_number() or self._power()
        while self._starts_factor():
            token = self._peek()
            before = self._tokens[self._at - 1]
            if token.lstrip("\\") in _NAMED or token == "|" or (token in ("(", "[") and not before[0].isdigit()):
                break
            result = Term("*", (result, self._power()))
        return Term("negate", (result,)) if negative else result
