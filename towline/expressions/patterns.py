"""Patterns of text: ``like`` and regular expressions, matched in linear time.

Python's ``re`` backtracks: one text of a request could keep a service busy for hours. Here a regular expression becomes
a nondeterministic automaton, whose sets of states are followed character by character (Thompson, 1968). The sets are
cached, so that a character usually costs one lookup. The syntax is a subset of RE2's, with the same meaning.
"""

import re
from collections.abc import Callable

MAX_STATES = 1_000
MAX_CACHED = 10_000  # sets of states, and transitions of one set
_CLASSES = {"d": [("0", "9")], "w": [("0", "9"), ("A", "Z"), ("_", "_"), ("a", "z")],
            "s": [("\t", "\n"), ("\f", "\r"), (" ", " ")]}  # fmt: skip
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}
_COUNTS = re.compile(r"\{(\d{1,4})(?:(,)(\d{1,4})?)?\}", re.ASCII)
_LAST = "\U0010ffff"

Ranges = list[tuple[str, str]]


class PatternError(Exception):
    """A pattern is invalid; the message says why."""


def compile_like(pattern: str) -> Callable[[str], bool]:
    """A function that tests texts against a pattern of SQL's ``like``: % is any text, _ is one character.

    Example:
        >>> compile_like("1%")("10115"), compile_like("_0%")("11")
        (True, False)
    """
    first, *middle = pattern.split("%")
    if "_" not in pattern and len(pattern) > 1:
        if pattern.count("%") == 1 and pattern[-1] == "%":
            return lambda text: text.startswith(first)
        if pattern.count("%") == 1 and pattern[0] == "%":
            return lambda text: text.endswith(middle[0])
        if len(middle) == 2 and not first and not middle[1]:
            return lambda text: middle[0] in text
    if not middle:
        whole = _piece(first)
        return lambda text: whole.fullmatch(text) is not None
    last = middle.pop()
    start, end, width = _piece(first), _piece(last), len(last)
    pieces = [_piece(piece) for piece in middle if piece]

    def matches(text: str) -> bool:
        match = start.match(text)
        if match is None:
            return False
        at, limit = match.end(), len(text) - width
        for piece in pieces:  # the first place is the best one: it leaves the most text to the rest
            match = piece.search(text, at)
            if match is None:
                return False
            at = match.end()
        return at <= limit and end.match(text, limit) is not None

    return matches


def _piece(piece: str) -> re.Pattern[str]:
    """A part of a like pattern without %; it has a fixed length, so that ``re`` does not backtrack."""
    return re.compile("".join("." if character == "_" else re.escape(character) for character in piece), re.DOTALL)


class LinearPattern:
    r"""A regular expression; ``search`` takes time proportional to the length of the text.

    It has characters, ``.``, classes (``[a-z]``, ``[^,]``, ``\d \w \s \D \W \S``, which are ASCII), groups, ``|``,
    ``* + ? {m,n}``, ``^`` and ``$``.

    Args:
        pattern: the regular expression.

    Raises:
        PatternError: it is invalid, too large, or uses another part of the syntax of ``re``.

    Example:
        >>> LinearPattern(r"^[A-Z]{2}\d+$").search("DE81")
        True
    """

    def __init__(self, pattern: str) -> None:
        self._pattern, self._at = pattern, 0
        # states: of type "ranges" (a character in them leads to the next), "split" (to both), "begin", "end", "match"
        self._states: list[tuple[str, Ranges, list[int]]] = []
        start, ends = self._alternatives(0)
        if self._at < len(pattern):
            raise PatternError("a ) has no (")
        match = self._add("match")
        self._connect(ends, match)
        self._match = match
        self._start = start
        self._cache: dict[frozenset[int], dict[str, frozenset[int]]] = {}
        self._at_begin = self._follow([start], at_begin=True, at_end=False)
        self._at_any = self._follow([start], at_begin=False, at_end=False)

    def search(self, text: str) -> bool:
        """Whether a part of the text matches."""
        states, match = self._at_begin, self._match
        if not text:
            return match in self._follow([self._start], at_begin=True, at_end=True)
        for character in text:
            if match in states:
                return True
            known = self._cache.get(states)
            states_after = None if known is None else known.get(character)
            states = self._step(states, character) if states_after is None else states_after
        return match in states or match in self._follow(sorted(states), at_begin=False, at_end=True)

    def _step(self, states: frozenset[int], character: str) -> frozenset[int]:
        reached = [
            following
            for state in states
            for kind, ranges, after in (self._states[state],)
            if kind == "ranges" and any(low <= character <= high for low, high in ranges)
            for following in after
        ]
        after = self._follow(reached, at_begin=False, at_end=False) | self._at_any
        if len(self._cache) > MAX_CACHED:
            self._cache.clear()
        transitions = self._cache.setdefault(states, {})
        if len(transitions) > MAX_CACHED:
            transitions.clear()
        transitions[character] = after
        return after

    def _follow(self, states: list[int], *, at_begin: bool, at_end: bool) -> frozenset[int]:
        """The states that are reached without a character."""
        reached: set[int] = set()
        pending = list(states)
        while pending:
            state = pending.pop()
            if state in reached:
                continue
            reached.add(state)
            kind, _, after = self._states[state]
            if kind == "split" or (kind == "begin" and at_begin) or (kind == "end" and at_end):
                pending += after
        return frozenset(reached)

    # The parser builds the automaton: each method returns the first state of a part, and its open ends (Thompson).

    def _add(self, kind: str, ranges: Ranges | None = None) -> int:
        if len(self._states) >= MAX_STATES:
            raise PatternError("the pattern is too large: write fewer or smaller repetitions")
        self._states.append((kind, ranges or [], []))
        return len(self._states) - 1

    def _connect(self, ends: list[int], to: int) -> None:
        for end in ends:
            self._states[end][2].append(to)

    def _alternatives(self, depth: int) -> tuple[int, list[int]]:
        if depth > 50:
            raise PatternError("more than 50 nested groups")
        start, ends = self._sequence(depth)
        while self._peek() == "|":
            self._at += 1
            other, other_ends = self._sequence(depth)
            split = self._add("split")
            self._connect([split], start)
            self._connect([split], other)
            start, ends = split, ends + other_ends
        return start, ends

    def _sequence(self, depth: int) -> tuple[int, list[int]]:
        start = self._add("split")
        ends = [start]
        while self._peek() not in ("", "|", ")"):
            begin = self._at
            first, part_ends = self._atom(depth)
            first, part_ends = self._repeat(begin, depth, first, part_ends)
            self._connect(ends, first)
            ends = part_ends
        return start, ends

    def _repeat(self, begin: int, depth: int, first: int, ends: list[int]) -> tuple[int, list[int]]:
        """The repetition after an atom, which begins at ``begin`` of the pattern."""
        symbol = self._peek()
        counts = _COUNTS.match(self._pattern, self._at) if symbol == "{" else None
        if symbol not in ("*", "+", "?") and counts is None:
            return first, ends
        least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(symbol, (0, None))
        if counts:
            least = int(counts[1])
            most = int(counts[3]) if counts[3] else None if counts[2] else least
            if most is not None and most < least:
                raise PatternError(f"{counts[0]}: the second number is smaller than the first")
        end = counts.end() if counts else self._at + 1
        start, open_ends = self._copies(begin, depth, (first, ends), least, most)
        self._at = end + (self._pattern[end : end + 1] == "?")  # lazy repetitions match the same texts
        if self._peek() in ("*", "+", "?") or _COUNTS.match(self._pattern, self._at):
            raise PatternError(f"a repetition is repeated: {self._pattern[begin : self._at + 1]}; write a group")
        return start, open_ends

    def _copies(
        self, begin: int, depth: int, atom: tuple[int, list[int]], least: int, most: int | None
    ) -> tuple[int, list[int]]:
        """Copies of an atom: ``least`` that must match, and more that may."""
        start = self._add("split")
        ends, copy, is_first = [start], atom, True
        for _ in range(least if most is not None else max(least - 1, 0)):
            copy, is_first = self._copy(begin, depth, copy, is_first=is_first)
            self._connect(ends, copy[0])
            ends = copy[1]
        if most is None:
            copy, is_first = self._copy(begin, depth, copy, is_first=is_first)
            loop = self._add("split")
            self._connect([loop], copy[0])
            self._connect(copy[1], loop)
            self._connect(ends, copy[0] if least else loop)
            return start, [loop]
        left = ends
        for _ in range(most - least):
            copy, is_first = self._copy(begin, depth, copy, is_first=is_first)
            self._connect(ends, copy[0])
            ends = copy[1]
            left = left + ends
        return start, left

    def _copy(
        self, begin: int, depth: int, atom: tuple[int, list[int]], *, is_first: bool
    ) -> tuple[tuple[int, list[int]], bool]:
        if is_first:
            return atom, False
        self._at = begin
        return self._atom(depth), False

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _atom(self, depth: int) -> tuple[int, list[int]]:
        character = self._peek()
        self._at += 1
        if character == "(":
            return self._group(depth)
        if character in ("*", "+", "?"):
            raise PatternError(f"{character} repeats nothing")
        if character in ("^", "$"):
            state = self._add("begin" if character == "^" else "end")
        elif character == ".":
            state = self._add("ranges", _complement([("\n", "\n")]))
        elif character == "[":
            state = self._add("ranges", self._class())
        elif character == "\\":
            state = self._add("ranges", self._escape())
        else:
            state = self._add("ranges", [(character, character)])
        return state, [state]

    def _group(self, depth: int) -> tuple[int, list[int]]:
        if self._peek() == "?":
            if self._pattern[self._at : self._at + 2] != "?:":
                raise PatternError(f"({self._pattern[self._at : self._at + 2]} is not supported; write (…) or (?:…)")
            self._at += 2
        part = self._alternatives(depth + 1)
        if self._peek() != ")":
            raise PatternError("a ( has no )")
        self._at += 1
        return part

    def _escape(self) -> Ranges:
        character = self._peek()
        self._at += 1
        if character.lower() in _CLASSES and character:
            ranges = _CLASSES[character.lower()]
            return ranges if character.islower() else _complement(ranges)
        if character in _ESCAPES:
            character = _ESCAPES[character]
        elif not character or (character.isascii() and character.isalnum()):
            raise PatternError(f"\\{character} is not supported; \\d \\w \\s and escaped symbols are")
        return [(character, character)]

    def _class(self) -> Ranges:
        ranges: Ranges = []
        negated = self._peek() == "^"
        self._at += negated
        is_first = True
        while is_first or self._peek() != "]":
            is_first = False
            if self._at >= len(self._pattern):
                raise PatternError("a [ has no ]")
            if self._pattern[self._at : self._at + 2] == "[:":
                raise PatternError("[:…:] is not supported; write the characters")
            part = self._class_member()
            after = self._pattern[self._at + 1 : self._at + 2]
            if len(part) == 1 and part[0][0] == part[0][1] and self._peek() == "-" and after not in ("]", ""):
                self._at += 1
                last = self._class_member()
                if len(last) != 1 or last[0][0] != last[0][1] or last[0][0] < part[0][0]:
                    raise PatternError(f"not a range of characters: {part[0][0]}-{last[0][0]}")
                part = [(part[0][0], last[0][1])]
            ranges += part
        self._at += 1
        return _complement(ranges) if negated else ranges

    def _class_member(self) -> Ranges:
        character = self._peek()
        self._at += 1
        return self._escape() if character == "\\" else [(character, character)]


def _complement(ranges: Ranges) -> Ranges:
    """The ranges of all other characters."""
    others: Ranges = []
    begin = 0
    for low, high in sorted(ranges):
        if begin < ord(low):
            others.append((chr(begin), chr(ord(low) - 1)))
        begin = max(begin, ord(high) + 1)
    if begin <= ord(_LAST):
        others.append((chr(begin), _LAST))
    return others
