"""Regular expressions as tables over a vocabulary, for the decode loop.

Python's own parser reads the expression and Python's own matcher says which
characters each of its parts accepts, so the meaning is that of `re`. The
subset construction is ours: it runs over the vocabulary alone and stops at
`MAX_STATES`. (Libraries that make automata either have no such bound, where
`(a|b)*a(a|b){30}` takes all memory, or read another dialect.)
"""

import functools
import re
from collections import deque
from re import _compiler, _parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_chargen.automata import follow
from keras_chargen.compilation import round_up

MAX_STATES = 10_000
_MAX_CELLS = 1 << 24  # of a table: states x vocabulary
_MAX_PARTS = 20_000  # of the expression, repetitions written out
DEAD = 1 << 30  # more characters than any text has

_SETS = ("LITERAL", "NOT_LITERAL", "ANY", "IN")
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT")
_STARTS = ("AT_BEGINNING", "AT_BEGINNING_STRING")
_ENDS = ("AT_END", "AT_END_STRING")


class PatternTable(NamedTuple):
    """A deterministic automaton over ids; it begins in state 0.

    Attributes:
        following: int32 `(S, V)`, the next state for a state and an id.
        need: int32 `(S, V)`, how many characters at least are missing to a
            full match once the id is written; `DEAD` where none can follow.
            `<eos>` needs 0 where the text so far matches, else `DEAD`.
        shortest: Integer, characters of the shortest match.
    """

    following: Any
    need: Any
    shortest: int


def pattern_table(pattern, tokenizer, allowed=None):
    """Builds the table of a regular expression in Python's syntax.

    Args:
        pattern: str. Look-around, back references, possessive repeats, atomic
            groups and word boundaries are no regular expressions in this
            sense and refused; `^` and `$` may stand at its ends.
        tokenizer: Adapted `CharTokenizer`.
        allowed: Optional bool `(V,)`, the ids that may be written at all.

    Returns:
        A `PatternTable`; S is a power of two, so that patterns of like size
        share compiled code.

    Raises:
        ValueError: Not a str or not valid; a part that is refused; nothing
            that the vocabulary can write matches; or too large.
    """
    if not isinstance(pattern, str):
        raise ValueError(
            f"`pattern` must be a str. Received: {type(pattern).__name__}"
        )
    if allowed is None:
        allowed = tokenizer.writable()
    return _table(pattern, tokenizer.characters, allowed.tobytes())


@functools.lru_cache(maxsize=8)
def _table(pattern, characters, allowed):
    mask = np.frombuffer(allowed, bool)
    ids = [i for i in range(1, len(characters) + 1) if mask[i]]
    alphabet = [characters[i - 1] for i in ids]
    automaton = _Automaton(pattern, alphabet)
    size = len(mask)
    rows, accepting = automaton.determinize(min(MAX_STATES, _MAX_CELLS // size))
    distance = _distances(rows, accepting)
    if distance[0] == DEAD:
        raise ValueError(_reason(pattern, automaton.literals, alphabet))
    count = max(16, round_up(len(rows)))
    following = np.zeros((count, size), "int32")
    need = np.full((count, size), DEAD, "int32")
    kinds = np.array(automaton.kinds)
    columns = np.array(ids, "int64")
    steps = np.append(distance, DEAD)
    for state, row in enumerate(rows):
        target = np.array(row, "int64")[kinds] if ids else np.zeros(0, "int64")
        following[state, columns] = np.maximum(target, 0)
        need[state, columns] = steps[target]  # -1 is the last: DEAD
    eos = len(characters) + 1
    if mask[eos]:
        need[: len(rows), eos] = np.where(accepting, 0, DEAD)
    following[:, eos] = np.arange(count)
    return PatternTable(following, need, int(distance[0]))


def _reason(pattern, literals, alphabet):
    lacking = sorted(set(literals) - set(alphabet))
    if lacking:
        return (
            f"`pattern` {pattern!r} needs characters that cannot be written "
            f"here: {lacking!r}"
        )
    return f"`pattern` {pattern!r} matches nothing that can be written here"


class _Automaton:
    """The expression as a nondeterministic automaton (Thompson, 1968)."""

    def __init__(self, pattern, alphabet):
        self.pattern = pattern
        self.alphabet = alphabet
        self.empty: list[list[int]] = []  # where a state leads unread
        self.edges: list[tuple[int, int] | None] = []  # (set, target)
        self.sets: dict[bytes, int] = {}  # which characters, by number
        self.literals: list[str] = []
        try:
            parsed = _parser.parse(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(
                f"`pattern` {pattern!r} is no regular expression: {error}"
            ) from None
        nodes = _without_anchors(list(parsed))
        self.start = self._state()
        self.end = self._sequence(nodes, parsed.state.flags, self.start)
        # Characters that no part tells apart share a column.
        member = np.array(
            [np.frombuffer(key, bool) for key in self.sets]
        ).reshape(len(self.sets), len(alphabet))
        columns, kinds = np.unique(member, axis=1, return_inverse=True)
        self.columns, self.kinds = columns, kinds.reshape(-1)

    def _state(self):
        if len(self.empty) > _MAX_PARTS:
            raise ValueError(
                f"`pattern` {self.pattern!r} is too large: written out it has "
                f"over {_MAX_PARTS:,} parts"
            )
        self.empty.append([])
        self.edges.append(None)
        return len(self.empty) - 1

    def _sequence(self, nodes, flags, state):
        for node in nodes:
            state = self._node(node, flags, state)
        return state

    def _node(self, node, flags, state):
        kind, value = str(node[0]), node[1]
        if kind in _SETS:
            if kind == "LITERAL":
                self.literals.append(chr(value))
            following = self._state()
            self.edges[state] = (self._set(node, flags), following)
            # The edge is the state's only one.
            out = self._state()
            self.empty[following].append(out)
            return out
        if kind == "SUBPATTERN":
            _, added, removed, inner = value
            return self._sequence(inner, (flags | added) & ~removed, state)
        if kind == "BRANCH":
            return self._branch(value[1], flags, state)
        if kind in _REPEATS:
            least, most, inner = value
            return self._repeat(least, most, inner, flags, state)
        raise ValueError(
            f"`pattern` {self.pattern!r} holds what no automaton can follow: "
            f"{kind.lower()}. Accepted are characters, classes, groups, | and "
            "repeats"
        )

    def _branch(self, branches, flags, state):
        out = self._state()
        for branch in branches:
            begin = self._state()
            self.empty[state].append(begin)
            self.empty[self._sequence(branch, flags, begin)].append(out)
        return out

    def _repeat(self, least, most, inner, flags, state):
        for _ in range(least):
            state = self._sequence(inner, flags, state)
        begin, out = self._state(), self._state()
        self.empty[state] += [begin, out]
        if most == _parser.MAXREPEAT:
            end = self._sequence(inner, flags, begin)
            self.empty[end] += [begin, out] if end != begin else [out]
            return out
        for _ in range(most - least):
            end = self._sequence(inner, flags, begin)
            begin = self._state()
            self.empty[end] += [begin, out]
        return out

    def _set(self, node, flags):
        state = _parser.State()
        state.flags = flags
        matcher = _compiler.compile(_parser.SubPattern(state, [node]), flags)
        member = np.array(
            [matcher.fullmatch(c) is not None for c in self.alphabet], bool
        )
        return self.sets.setdefault(member.tobytes(), len(self.sets))

    def _closure(self, states):
        found, waiting = set(states), list(states)
        while waiting:
            for state in self.empty[waiting.pop()]:
                if state not in found:
                    found.add(state)
                    waiting.append(state)
        # Those that only lead on need no place in the set's name.
        return frozenset(
            s for s in found if self.edges[s] is not None or s == self.end
        )

    def determinize(self, limit):
        """Makes it deterministic.

        Returns:
            For each state the next ones by kind of character (-1: none), and
            bool `(S,)`, whether it accepts.
        """
        first = self._closure([self.start])
        numbers, queue = {first: 0}, deque([first])
        rows = []
        while queue:
            states = queue.popleft()
            edges = [edge for s in states if (edge := self.edges[s])]
            row = []
            for kind in range(self.columns.shape[1]):
                targets = {
                    t for number, t in edges if self.columns[number, kind]
                }
                following = self._closure(targets)
                if not following:
                    row.append(-1)
                    continue
                if following not in numbers:
                    if len(numbers) == limit:
                        raise ValueError(
                            f"`pattern` {self.pattern!r} is too large: it "
                            f"needs over {limit:,} states"
                        )
                    numbers[following] = len(numbers)
                    queue.append(following)
                row.append(numbers[following])
            rows.append(row)
        return rows, np.array([self.end in states for states in numbers])


def _distances(rows, accepting):
    """Returns int64 `(S,)`: characters to the nearest match, or `DEAD`."""
    before: list[list[int]] = [[] for _ in rows]
    for state, row in enumerate(rows):
        for target in set(row) - {-1}:
            before[target].append(state)
    distance = np.full(len(rows), DEAD, "int64")
    queue = deque(np.flatnonzero(accepting).tolist())
    distance[accepting] = 0
    while queue:
        state = queue.popleft()
        for source in before[state]:
            if distance[source] == DEAD:
                distance[source] = distance[state] + 1
                queue.append(source)
    return distance


def _without_anchors(nodes):
    # The whole text must match, so they say nothing at the ends.
    while nodes and _is_anchor(nodes[0], _STARTS):
        nodes = nodes[1:]
    while nodes and _is_anchor(nodes[-1], _ENDS):
        nodes = nodes[:-1]
    return nodes


def _is_anchor(node, kinds):
    return str(node[0]) == "AT" and str(node[1]) in kinds


def begin(table, batch_size, length):
    """Returns the part of the decode loop's state that follows a pattern.

    Args:
        table: `PatternTable`.
        batch_size: Integer B.
        length: Integer, characters that a row may write. Where the shortest
            match is longer, beginnings of matches are written.
    """
    return {
        "following": table.following,
        "need": table.need,
        "fits": np.bool_(table.shortest <= length),
        "state": np.zeros(batch_size, "int32"),
    }


def permit(logits, pattern, left):
    """Leaves out what leads to no match.

    Args:
        logits: float32 `(B, V)`.
        pattern: As from `begin` and `advance`.
        left: int32 `(B,)`, characters that may follow the next one.

    Returns:
        float32 `(B, V)`; at least one id stays wherever the text so far
        begins a match.
    """
    need = ops.take(pattern["need"], pattern["state"], axis=0)
    # Below 0 where a row is done: it too keeps an id, that nobody reads.
    left = ops.maximum(left, 0)
    free = ops.logical_not(pattern["fits"])
    keep = ops.logical_or(
        need <= left[:, None], ops.logical_and(free, need < DEAD)
    )
    return ops.where(keep, logits, -float("inf"))


def advance(pattern, ids, writes):
    """Returns the pattern after a step.

    Args:
        pattern: As from `begin`.
        ids: int32 `(B,)`.
        writes: bool `(B,)`, where they were written.
    """
    state = pattern["state"]
    following = follow(pattern["following"], state, ids)
    return {**pattern, "state": ops.where(writes, following, state)}
