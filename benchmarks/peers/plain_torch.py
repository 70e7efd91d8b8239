"""PyTorch alone: `nn.LSTM`, with the same texts in its best form."""

import time

import numpy as np


def model_of(vocabulary_size, units):
    """An LSTM over one-hot input, given as the embedding that equals it."""
    import torch

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = torch.nn.LSTM(vocabulary_size, units, batch_first=True)
            self.logits = torch.nn.Linear(units, vocabulary_size)
            self.register_buffer("eye", torch.eye(vocabulary_size))

        def forward(self, ids, state=None):
            hidden, state = self.lstm(self.eye[ids], state)
            return self.logits(hidden), state

    return Model()


def training(batches, vocabulary_size, units):
    """Measures an epoch over ready batches: characters that count a second.

    Args:
        batches: Path of an `.npz` of `ids_0`, `targets_0`, `weights_0`, ...
        vocabulary_size: Integer.
        units: Integer.
    """
    import torch

    arrays = np.load(batches)
    count = len(arrays.files) // 3
    data = [
        (
            torch.from_numpy(arrays[f"ids_{i}"].astype("int64")),
            torch.from_numpy(arrays[f"targets_{i}"].astype("int64")),
        )
        for i in range(count)
    ]
    characters = sum(int((targets != 0).sum()) for _, targets in data)
    model = model_of(vocabulary_size, units)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3, fused=True)

    def step(ids, targets):
        optimizer.zero_grad()
        logits, _ = model(ids)
        # Id 0 is padding, and no target that counts.
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=0
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    for batch in data[:3]:
        step(*batch)

    def run():
        begin = time.perf_counter()
        for batch in data:
            step(*batch)
        return characters / (time.perf_counter() - begin)

    return run
