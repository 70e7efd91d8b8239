"""Stop strings as an automaton over ids, so that the decode loop sees them."""

from collections import deque

import numpy as np

from keras_chargen.compilation import round_up


def stop_table(stops, tokenizer):
    """Builds the Aho-Corasick automaton of some strings over ids.

    Source: Aho and Corasick, "Efficient string matching", 1975.

    Args:
        stops: List of non-empty str. One with a character outside the
            vocabulary can never be written and is left out.
        tokenizer: Adapted `CharTokenizer`.

    Returns:
        int32 `(S, V)`: the next state for a state and an id, from state 0;
        -1 where a stop string is complete. S is a power of two, so that
        similar sets of strings share compiled code. None where no string is
        left.
    """
    ids_of = {c: i + 1 for i, c in enumerate(tokenizer.characters)}
    words = [
        [ids_of[character] for character in stop]
        for stop in stops
        if all(character in ids_of for character in stop)
    ]
    if not words:
        return None
    children: list[dict[int, int]] = [{}]
    complete = [False]
    for word in words:
        state = 0
        for symbol in word:
            if symbol not in children[state]:
                children[state][symbol] = len(children)
                children.append({})
                complete.append(False)
            state = children[state][symbol]
        complete[state] = True
    size = round_up(len(children))
    table = np.zeros((size, tokenizer.vocabulary_size()), "int32")
    failure = [0] * len(children)
    queue = deque([0])
    while queue:
        state = queue.popleft()
        # Where the word does not go on, go on as its longest suffix would.
        if state:
            table[state] = table[failure[state]]
            complete[state] = complete[state] or complete[failure[state]]
        for symbol, child in children[state].items():
            failure[child] = table[state, symbol]
            table[state, symbol] = child
            queue.append(child)
    ends = np.zeros(size, bool)
    ends[: len(complete)] = complete
    return np.where(ends[table], -1, table).astype("int32")


def cut(text, stops):
    """Cuts the stop string that ends `text`, the longest where several do."""
    ending = max((s for s in stops if text.endswith(s)), key=len, default="")
    return text[: len(text) - len(ending)]


def up_to_stop(text, stops):
    """Returns the text up to the end of the first stop string in it."""
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    return text[: min(ends, default=len(text))]


def held_back(text, stops):
    """Returns how many last characters of `text` may begin a stop string."""
    return max(
        (
            size
            for stop in stops
            for size in range(1, len(stop))
            if text.endswith(stop[:size])
        ),
        default=0,
    )
