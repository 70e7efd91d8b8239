"""Interpolated modified Kneser-Ney: counts of n-grams, nothing trained.

After Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language
Modeling" (Computer Speech & Language 13, 1999). From each count is taken a
discount, of three by whether it is 1, 2 or more, as the counts of counts of its
length say. (One discount for all is worse: on tinyshakespeare 1.565 nats in
place of 1.517.) What is taken goes to the model of one character less, and at
last to all ids alike. So much has an id that training never saw: what was taken
from the counts of single characters, divided by the number of ids.

Below the longest, a count is of the different characters that stand before an
n-gram; where it begins a text none can, and it is how often that occurs.
"""

import numpy as np


class KneserNey:
    """A character model of n-grams.

    A text is an array of ids, all of them predicted: the first from a boundary
    that no text holds and nothing reaches across. An `<eos>` that shall count
    is the last id of its text.

    Args:
        order: Positive integer, the longest n-gram.
        size: Positive integer, ids are below it.
    """

    def __init__(self, order, size):
        self.order = order
        self.size = size

    def fit(self, texts):
        """Counts, and returns itself.

        Args:
            texts: List of arrays of ids.
        """
        # For each length: keys of its n-grams, sorted; the discounts of their
        # counts; the part of their context that is theirs; what was taken
        # from each context, by the n-gram that it is.
        self.keys, self.discounts, self.shares, self.taken = [], [], [], []
        stream, depth = self._frame(texts)
        grams = list(self._grams(stream, depth, learn=True))
        # Of the empty context there is one, and 0 is none.
        contexts, contexts_size = np.ones_like(stream), 2
        for n, ids in enumerate(grams, 1):
            # The boundary itself is not predicted.
            here = depth >= max(n, 2)
            size = self._table_size(n)
            counts = np.bincount(ids[here], minlength=size)
            if n < self.order:
                longer = self.keys[n][1:] // (self.size + 2)
                different = np.bincount(longer, minlength=size)
                counts = np.where(different > 0, different, counts)
            context = np.zeros(size, "int64")
            context[ids[here]] = np.roll(contexts, 1)[here]
            self.discounts.append(discounts_of(counts))
            discounts = np.take(self.discounts[-1], np.minimum(counts, 3))
            total = np.bincount(context, counts, minlength=contexts_size)
            left = np.bincount(context, discounts, minlength=contexts_size)
            self.shares.append(
                (counts - discounts) / np.maximum(total[context], 1)
            )
            # A context that was never seen leaves all to a shorter one.
            self.taken.append(
                np.where(total > 0, left / np.maximum(total, 1), 1.0)
            )
            contexts, contexts_size = ids, size
        return self

    def probabilities(self, texts):
        """Returns the probability of each id, one array for all texts."""
        stream, depth = self._frame(texts)
        contexts = np.ones_like(stream)
        found = np.full(len(stream), 1 / self.size)
        for ids, shares, taken in zip(
            self._grams(stream, depth), self.shares, self.taken, strict=True
        ):
            found = shares[ids] + taken[np.roll(contexts, 1)] * found
            contexts = ids
        return found[depth > 1]

    def nats(self, texts):
        """Returns the sum of nats of texts and how many ids they are of."""
        found = self.probabilities(texts)
        return float(-np.log(found).sum()), len(found)

    def _frame(self, texts):
        """Returns all texts in one row, and how much of a text stands there.

        Ids are one up, as 0 is none; each text begins with a boundary, of
        depth 1, and its id is the highest.
        """
        parts, depths = [], []
        for text in texts:
            parts += [[self.size + 1], np.asarray(text, "int64") + 1]
            depths.append(np.arange(1, len(text) + 2))
        return np.concatenate(parts), np.concatenate(depths)

    def _grams(self, stream, depth, learn=False):
        """Yields for each length the ids of n-grams by where they end.

        The key of an n-gram is the id of the one without its first character,
        and that character: a key has 64 bits whatever the length. Id 0 is an
        n-gram that is too long for its place, or was not seen in training.
        """
        if learn:
            self.keys.append(None)
        ids = stream
        yield ids
        for n in range(2, self.order + 1):
            first = np.roll(stream, n - 1)
            keys = np.where(depth >= n, ids * (self.size + 2) + first, 0)
            if learn:
                # A boundary has the key 0, so its id is 0.
                self.keys.append(np.unique(keys))
            table = self.keys[n - 1]
            ids = np.minimum(np.searchsorted(table, keys), len(table) - 1)
            ids = np.where(table[ids] == keys, ids, 0)
            yield ids

    def _table_size(self, n):
        return self.size + 2 if n == 1 else len(self.keys[n - 1])


class AdaptiveKneserNey(KneserNey):
    """The same, and it also learns as it reads.

    After each character is predicted it is counted, exactly as if it had been
    in the training text; the discounts stay those of training. Texts that
    were read stay known. The counts are in dicts, character by character:
    slower by far.
    """

    def fit(self, texts):
        super().fit(texts)
        # Of an n-gram its count; of a context the sum of its counts, and how
        # many of them are 1, 2 and more.
        self.counts, self.contexts = {}, {}
        for text, i in self._places(texts):
            self._count(text, i)
        return self

    def probabilities(self, texts):
        found = []
        for text, i in self._places(texts):
            found.append(self._predict(text, i))
            self._count(text, i)
        return np.array(found)

    def _places(self, texts):
        """Yields each text as a str with its boundary, and each place in it."""
        for text in texts:
            text = "".join(map(chr, [self.size, *text]))
            for i in range(1, len(text)):
                yield text, i

    def _count(self, text, i):
        for begin in range(max(i - self.order + 1, 0), i + 1):
            gram = text[begin : i + 1]
            count = self.counts.get(gram, 0)
            self.counts[gram] = count + 1
            context = self.contexts.setdefault(gram[:-1], [0, 0, 0, 0])
            context[0] += 1
            context[min(count + 1, 3)] += 1
            if count:
                context[min(count, 3)] -= 1
                # Known, so it is no new one before the n-gram within it.
                break

    def _predict(self, text, i):
        found = 1 / self.size
        for n in range(1, min(self.order, i + 1) + 1):
            gram = text[i - n + 1 : i + 1]
            context = self.contexts.get(gram[:-1])
            if context is None:
                break
            total, n1, n2, n3 = context
            discounts = _, d1, d2, d3 = self.discounts[n - 1]
            found *= (n1 * d1 + n2 * d2 + n3 * d3) / total
            count = self.counts.get(gram)
            if count:
                found += (count - discounts[min(count, 3)]) / total
        return found


def discounts_of(counts):
    """Returns what is taken from a count of 0, 1, 2 and more, 4 floats.

    Args:
        counts: Array of integers, those of all n-grams of a length.
    """
    n1, n2, n3, n4 = np.bincount(counts, minlength=5)[1:5].tolist()
    share = n1 / max(n1 + 2 * n2, 1)
    found = [
        k - (k + 1) * share * more / max(some, 1)
        for k, some, more in ((1, n1, n2), (2, n2, n3), (3, n3, n4))
    ]
    # Of few n-grams, as of single characters, counts of counts say little.
    return [
        0.0,
        *(d if 0 < d < k else k / 2 for k, d in enumerate(found, 1)),
    ]
