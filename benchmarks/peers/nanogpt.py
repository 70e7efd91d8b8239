"""A small transformer, as nanoGPT trains one on Shakespeare with a CPU.

The sizes and the recipe are those of github.com/karpathy/nanoGPT (README, "I
only have a macbook", with `config/train_shakespeare_char.py`): 4 layers, 4
heads, 128 wide, 64 characters, batch 12, no dropout, 2,000 steps, a held-out
loss of 1.88. The code is our own.
"""

import math
import time

from benchmarks.protocols import blocks

LAYERS, HEADS, WIDTH, BLOCK, BATCH = 4, 4, 128, 64, 12
WARM_UP, RATES = 100, (1e-3, 1e-4)


def build(size):
    """Returns the model: ids `(B, T)` to logits `(B, T, size)`.

    Its embedding is its last layer too; nothing has a bias.
    """
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_norm = nn.LayerNorm(WIDTH, bias=False)
            self.split = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
            self.join = nn.Linear(WIDTH, WIDTH, bias=False)
            self.network_norm = nn.LayerNorm(WIDTH, bias=False)
            self.widen = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
            self.narrow = nn.Linear(4 * WIDTH, WIDTH, bias=False)

        def forward(self, x):  # (B, T, WIDTH)
            parts = self.split(self.attention_norm(x))
            # 3 of (B, HEADS, T, WIDTH / HEADS)
            parts = parts.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(*parts, is_causal=True)
            x = x + self.join(mixed.transpose(1, 2).flatten(2))
            return x + self.narrow(F.gelu(self.widen(self.network_norm(x))))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.characters = nn.Embedding(size, WIDTH)
            self.places = nn.Embedding(BLOCK, WIDTH)
            self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
            self.last = nn.LayerNorm(WIDTH, bias=False)
            for name, weight in self.named_parameters():
                if weight.dim() > 1:
                    # As in GPT-2: what is added to x is smaller the more
                    # is added.
                    adds = name.endswith(("join.weight", "narrow.weight"))
                    scale = 1 / math.sqrt(2 * LAYERS) if adds else 1
                    nn.init.normal_(weight, std=0.02 * scale)

        def forward(self, ids):
            x = self.characters(ids) + self.places.weight[: ids.shape[1]]
            return F.linear(self.last(self.blocks(x)), self.characters.weight)

    return Model()


def loss_of(model, inputs, targets):
    """Returns nats per character as a tensor.

    Args:
        model: What `build` returns.
        inputs: Array `(B, T)` of ids, `T` at most 64.
        targets: Array `(B, T)`.
    """
    import torch

    logits = model(torch.from_numpy(inputs).long())
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(targets).long().flatten()
    )


def rate_of(step, steps):
    """Returns the learning rate: up in a line, down in half a cosine."""
    high, low = RATES
    if step < WARM_UP:
        return high * (step + 1) / (WARM_UP + 1)
    part = (step - WARM_UP) / (steps - WARM_UP)
    return low + (high - low) * (1 + math.cos(math.pi * part)) / 2


def train(ids, held_out, size, steps=2000, every=250, seed=0):
    """Trains, and tells how far it is.

    Args:
        ids: Array of ids to train on.
        held_out: Array of ids; 240 blocks of it are scored, the same each
            time.
        size: Integer, ids are below it.
        steps: Integer; the learning rate is at its lowest at the last.
        every: Integer, steps between two evaluations.
        seed: Integer, of the weights and of the batches.

    Yields:
        Seconds of training until then, without building and evaluation, and
        nats per character: before the first step, each `every` steps, and at
        the end.
    """
    import numpy as np
    import torch

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    judged = blocks(held_out, BLOCK)
    model = build(size)
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [w for w in weights if w.dim() > 1]},
            {"params": [w for w in weights if w.dim() == 1], "weight_decay": 0},
        ],
        betas=(0.9, 0.99),
        weight_decay=0.1,
        # The same numbers in less time.
        fused=True,
    )
    seconds, begin = 0.0, time.perf_counter()
    for step in range(steps + 1):
        if step % every == 0 or step == steps:
            seconds += time.perf_counter() - begin
            with torch.inference_mode():
                nats = loss_of(model, *judged).item()
            yield seconds, nats
            begin = time.perf_counter()
        if step == steps:
            return
        for group in optimizer.param_groups:
            group["lr"] = rate_of(step, steps)
        optimizer.zero_grad()
        loss_of(model, *blocks(ids, BLOCK, BATCH, rng)).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
