"""Random numbers for the rows of a batch, the same under every backend."""

import numpy as np


class Draws:
    """One uniform number per row and character, equal under every backend.

    NumPy's Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2,
    3", 2011) keyed by (seed, row) gives each row a stream of its own; stream 1
    is far from stream 0.
    """

    def __init__(self, keys, size, stream=0):
        self.generators = [
            np.random.Generator(
                np.random.Philox(key=np.array(key, "uint64")).jumped(stream)
            )
            for key in keys
        ]
        # Numbers drawn and not yet past, and the place of the first.
        self.drawn = [np.zeros(0, "float32") for _ in keys]
        self.passed = [0] * len(keys)
        self.size = size

    def at(self, places):
        """Returns float32 `(K, B)`: for each row its numbers `places`.

        A row's places ascend by one from step to step and from call to call;
        negative ones, where a prompt is read, give 0.
        """
        uniform = np.zeros((len(places), self.size), "float32")
        for row, generator in enumerate(self.generators):
            first, last = places[0, row], places[-1, row]
            if last < 0:
                continue
            begin = max(first, 0)
            drawn = self.drawn[row][begin - self.passed[row] :]
            more = last + 1 - begin - len(drawn)
            if more > 0:
                # 24 bits: float32 holds each exactly, and all are below 1.
                bits = generator.integers(0, 1 << 24, more, dtype="uint32")
                fresh = bits.astype("float32") / np.float32(1 << 24)
                drawn = np.append(drawn, fresh)
            self.drawn[row], self.passed[row] = drawn, begin
            uniform[begin - first :, row] = drawn[: last + 1 - begin]
        return uniform
