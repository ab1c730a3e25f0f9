"""The syntax of expressions: a parser from text to a tree of names, literals and calls.

Operators, ``case`` and ``cast`` become calls too, so that a tree has only three types of nodes. The parser
is written for this language: a parser of all SQL takes half a second to import, is not in an image of a compiled model,
and does not keep the positions of operators, which errors need.
"""

import datetime as dt
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MAX_LENGTH = 10_000  # characters of an expression
MAX_DEPTH = 50  # nested parentheses, functions and cases
MAX_CHAIN = 200  # nested calls: a chain such as a + b + c + … is nested to the left

_KEYWORDS = frozenset({
    "and", "as", "between", "case", "cast", "else", "end", "false", "in", "is", "like", "not", "null", "or", "then",
    "true", "when",
})  # fmt: skip
_TOKEN = re.compile(
    r"""(?P<space>(?:\s|--[^\n]*)+)
    | (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<text>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")*")
    | (?P<name>[^\W\d]\w*)
    | (?P<symbol><>|!=|<=|>=|\|\||[-+*/%(),=<>])""",
    re.VERBOSE,
)
_COMPARISONS = {"=": "=", "<>": "<>", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}


class ExpressionError(Exception):
    """An expression is invalid.

    Attributes:
        message: what is wrong.
        at: the position in the text, from 0.
        remedy: how to correct it.
    """

    def __init__(self, message: str, at: int, remedy: str = "") -> None:
        super().__init__(message)
        self.message, self.at, self.remedy = message, at, remedy

    def describe(self, text: str) -> str:
        """The message with the position in the expression ``text`` and the remedy.

        Example:
            >>> ExpressionError("unknown column 'c'", 4).describe("a + c")
            "column 5: unknown column 'c'"
        """
        before = text[: self.at]
        line, column = before.count("\n") + 1, self.at - (before.rfind("\n") + 1) + 1
        place = f"line {line}, column {column}" if "\n" in text.rstrip() else f"column {column}"
        return f"{place}: {self.message}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Literal:
    """A constant: a number (float), text, a boolean, a naive datetime, or None for null."""

    value: float | str | bool | dt.datetime | None
    at: int


@dataclass(frozen=True)
class Name:
    """The name of a column."""

    name: str
    at: int


@dataclass(frozen=True)
class Call:
    """A function or an operator, by its name in ``operations``, with its arguments."""

    function: str
    arguments: tuple["Node", ...]
    at: int


Node = Literal | Name | Call


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


def parse(text: str) -> Node:
    """Parses an expression.

    Raises:
        ExpressionError: the text is not an expression.

    Example:
        >>> parse("a + 1")
        Call(function='+', arguments=(Name(name='a', at=0), Literal(value=1.0, at=4)), at=2)
    """
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"longer than {MAX_LENGTH:,} characters", MAX_LENGTH, "write several features")
    node = _Parser(tuple(_tokens(text))).parse()
    level = [node]
    for _ in range(MAX_CHAIN):
        level = [argument for part in level if isinstance(part, Call) for argument in part.arguments]
    if level:
        raise ExpressionError(f"more than {MAX_CHAIN} nested operations", level[0].at, "write several features")
    return node


def list_columns(node: Node) -> list[Name]:
    """The columns that an expression reads, each once, in the order of the text.

    Example:
        >>> [name.name for name in list_columns(parse("b / a + b"))]
        ['b', 'a']
    """
    names: dict[str, Name] = {}
    pending = [node]
    while pending:
        part = pending.pop()
        if isinstance(part, Name):
            if part.name not in names or part.at < names[part.name].at:
                names[part.name] = part
        elif isinstance(part, Call):
            pending += part.arguments
    return sorted(names.values(), key=lambda name: name.at)


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            if text[at] in "'\"":
                quoted = "text" if text[at] == "'" else "column name"
                raise ExpressionError(f"a {quoted} has no closing {text[at]}", at, f"add {text[at]}")
            raise ExpressionError(f"unexpected character {text[at]!r}", at, "remove it")
        kind, part = str(match.lastgroup), match[0]
        if kind == "name" and part.lower() in _KEYWORDS:
            kind, part = "keyword", part.lower()
        if kind != "space":
            yield _Token(kind, part, at)
        at = match.end()
    yield _Token("end", "", len(text))


class _Parser:
    """A recursive-descent parser; a method for each level of precedence, the lowest first."""

    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens, self._next, self._depth = tokens, 0, 0

    def parse(self) -> Node:
        if self._token.kind == "end":
            raise ExpressionError("the expression is empty", 0, "write an expression, such as a / b")
        node = self._parse_or()
        if self._token.kind != "end":
            raise self._unexpected("the end, or an operator")
        return node

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, *texts: str) -> _Token | None:
        """The next token if it is a keyword or symbol among ``texts``; then the parser advances."""
        token = self._token
        if token.kind not in ("keyword", "symbol") or token.text not in texts:
            return None
        self._next += 1
        return token

    def _expect(self, text: str) -> _Token:
        token = self._take(text)
        if token is None:
            raise self._unexpected(text)
        return token

    def _unexpected(self, expected: str) -> ExpressionError:
        token = self._token
        what = "the end of the expression" if token.kind == "end" else repr(token.text)
        return ExpressionError(f"unexpected {what}", token.at, f"expected {expected}")

    def _parse_or(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExpressionError(f"more than {MAX_DEPTH} nested parts", self._token.at, "write several features")
        node = self._parse_and()
        while token := self._take("or"):
            node = Call("or", (node, self._parse_and()), token.at)
        self._depth -= 1
        return node

    def _parse_and(self) -> Node:
        node = self._negation()
        while token := self._take("and"):
            node = Call("and", (node, self._negation()), token.at)
        return node

    def _negation(self) -> Node:
        tokens = []
        while token := self._take("not"):
            tokens.append(token)
        node = self._comparison()
        for token in reversed(tokens):
            node = Call("not", (node,), token.at)
        return node

    def _comparison(self) -> Node:
        node = self._concatenation()
        while True:
            token = self._token
            if self._take(*_COMPARISONS):
                node = Call(_COMPARISONS[token.text], (node, self._concatenation()), token.at)
            elif self._take("is"):
                negated = self._take("not")
                self._expect("null")
                node = _negate(Call("is null", (node,), token.at), token if negated else None)
            else:
                negated = self._take("not")
                test = self._token
                if self._take("between"):
                    low = self._concatenation()
                    self._expect("and")
                    high = self._concatenation()
                    node = _negate(Call("between", (node, low, high), test.at), negated)
                elif self._take("in"):
                    self._expect("(")
                    node = _negate(Call("in", (node, *self._arguments()), test.at), negated)
                elif self._take("like"):
                    node = _negate(Call("like", (node, self._concatenation()), test.at), negated)
                elif negated:
                    raise self._unexpected("between, in or like")
                else:
                    return node

    def _concatenation(self) -> Node:
        node = self._sum()
        while token := self._take("||"):
            node = Call("||", (node, self._sum()), token.at)
        return node

    def _sum(self) -> Node:
        node = self._product()
        while token := self._take("+", "-"):
            node = Call(token.text, (node, self._product()), token.at)
        return node

    def _product(self) -> Node:
        node = self._sign()
        while token := self._take("*", "/", "%"):
            node = Call(token.text, (node, self._sign()), token.at)
        return node

    def _sign(self) -> Node:
        signs = []
        while token := self._take("-", "+"):
            if token.text == "-":
                signs.append(token)
        node = self._value()
        for token in reversed(signs):
            is_number = isinstance(node, Literal) and isinstance(node.value, float)
            node = Literal(-node.value, token.at) if is_number else Call("negative", (node,), token.at)  # type: ignore[union-attr,operator]
        return node

    def _value(self) -> Node:
        token = self._token
        self._next += 1
        if token.kind == "number":
            number = float(token.text)
            if number == math.inf:
                raise ExpressionError("the number is too large", token.at, "write a number below 1e308")
            return Literal(number, token.at)
        if token.kind == "text":
            return Literal(token.text[1:-1].replace("''", "'"), token.at)
        if token.kind == "quoted":
            return Name(token.text[1:-1].replace('""', '"'), token.at)
        if token.kind == "keyword" and token.text in ("true", "false", "null"):
            return Literal({"true": True, "false": False}.get(token.text), token.at)
        if token.kind == "name":
            return self._name(token)
        if token.kind == "keyword" and token.text == "case":
            return self._case(token)
        if token.kind == "keyword" and token.text == "cast":
            return self._cast(token)
        if token.kind == "symbol" and token.text == "(":
            node = self._parse_or()
            self._expect(")")
            return node
        self._next -= 1
        quoted = f'; the column "{token.text}" is written in quotes' if token.kind == "keyword" else ""
        raise self._unexpected(f"a column, a number, a text or a function{quoted}")

    def _name(self, token: _Token) -> Node:
        following = self._token
        if self._take("("):
            arguments = () if self._take(")") else self._arguments()
            return Call(token.text.lower(), arguments, token.at)
        if following.kind == "text" and token.text.lower() in ("timestamp", "date"):
            self._next += 1
            return Literal(_parse_time(following), token.at)
        return Name(token.text, token.at)

    def _arguments(self) -> tuple[Node, ...]:
        """The arguments of a function, and the closing parenthesis."""
        arguments = [self._parse_or()]
        while self._take(","):
            arguments.append(self._parse_or())
        if not self._take(")"):
            raise self._unexpected(", or )")
        return tuple(arguments)

    def _case(self, token: _Token) -> Node:
        is_switch = self._token[:2] != ("keyword", "when")
        parts = [self._parse_or()] if is_switch else []
        while self._take("when"):
            parts.append(self._parse_or())
            self._expect("then")
            parts.append(self._parse_or())
        if len(parts) < 2:
            raise self._unexpected("when")
        parts.append(self._parse_or() if self._take("else") else Literal(None, token.at))
        self._expect("end")
        return Call("switch" if is_switch else "case", tuple(parts), token.at)

    def _cast(self, token: _Token) -> Node:
        self._expect("(")
        node = self._parse_or()
        self._expect("as")
        name = self._token
        types = {"number": "number", "double": "number", "text": "text", "varchar": "text", "boolean": "boolean"}
        if name.kind != "name" or name.text.lower() not in types:
            raise self._unexpected("number, text or boolean")
        self._next += 1
        self._expect(")")
        return Call(f"cast as {types[name.text.lower()]}", (node,), token.at)


def _parse_time(token: _Token) -> dt.datetime:
    text = token.text[1:-1]
    try:
        moment = dt.datetime.fromisoformat(text) if re.match(r"\d{4}-\d\d-\d\d(?!\d)", text, re.ASCII) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is not None:
        remedy = "write it in UTC, as 2026-01-31 or 2026-01-31 13:00:00"
        raise ExpressionError(f"not a time: {token.text}", token.at, remedy)
    return moment


def _negate(node: Node, negation: _Token | None) -> Node:
    return Call("not", (node,), negation.at) if negation else node
