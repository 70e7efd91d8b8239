"""JAX alone: an LSTM as `lax.scan`, its gradient left to JAX."""

import functools
import time

import numpy as np


def training(batches, vocabulary_size, units):
    """Measures an epoch over ready batches: as `plain_torch.training`."""
    import jax
    import jax.numpy as jnp

    arrays = np.load(batches)
    count = len(arrays.files) // 3
    names = ("ids", "targets", "weights")
    data = [
        tuple(arrays[f"{name}_{i}"] for name in names) for i in range(count)
    ]
    characters = sum(int((weights > 0).sum()) for *_, weights in data)
    rng = np.random.default_rng(0)

    def matrix(rows, columns):
        scale = np.sqrt(1 / rows)
        return jnp.asarray(rng.normal(0, scale, (rows, columns)), "float32")

    weights = {
        "kernel": matrix(vocabulary_size, 4 * units),
        "recurrent": matrix(units, 4 * units),
        "bias": jnp.zeros(4 * units),
        "out": matrix(units, vocabulary_size),
        "out_bias": jnp.zeros(vocabulary_size),
    }

    def loss(weights, ids, targets, counts):
        projected = weights["kernel"][ids.T] + weights["bias"]

        def step(carry, x):
            h, c = carry
            gates = x + h @ weights["recurrent"]
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((ids.shape[0], units))
        _, hidden = jax.lax.scan(step, (zeros, zeros), projected)
        logits = hidden @ weights["out"] + weights["out_bias"]
        log_probs = jax.nn.log_softmax(logits)
        nats = -jnp.take_along_axis(log_probs, targets.T[..., None], axis=-1)
        return (nats[..., 0] * counts.T).sum() / counts.sum()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train(weights, moments, step, *batch):
        gradients = jax.grad(loss)(weights, *batch)
        squares = sum((g**2).sum() for g in gradients.values())
        scale = jnp.minimum(1.0, 1.0 / jnp.sqrt(squares))
        updated, following = {}, {}
        for name, gradient in gradients.items():
            gradient = gradient * scale
            first, second = moments[name]
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            rate = 5e-3 * jnp.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            change = rate * first / (jnp.sqrt(second) + 1e-8)
            updated[name] = weights[name] - change
            following[name] = (first, second)
        return updated, following, step + 1

    state = [weights, {k: (0 * w, 0 * w) for k, w in weights.items()}, 1.0]

    def run():
        begin = time.perf_counter()
        for batch in data:
            state[:] = train(*state, *batch)
        jax.block_until_ready(state)
        return characters / (time.perf_counter() - begin)

    run()
    return run
