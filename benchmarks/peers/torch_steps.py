"""PyTorch alone writing: one `nn.LSTMCell` step after the other."""

import time

import numpy as np


def writer(weights, batch, drawn=False, compiled=False):
    """Returns `write(length)`, which writes from `<eos>` and gives the ids.

    Args:
        weights: Path of an `.npz` as `benchmarks.writing.save_weights` makes.
        batch: Integer, rows.
        drawn: Whether to draw, else the likeliest is taken.
        compiled: Whether a step goes through `torch.compile`.
    """
    import torch

    arrays = np.load(weights)
    # Keras's gates stand in the order of PyTorch's; its kernels are transposed.
    kernel, recurrent, bias, out, out_bias = (
        torch.from_numpy(arrays[f"weight_{i}"]) for i in range(5)
    )
    size, units = out.shape[1], out.shape[0]
    cell = torch.nn.LSTMCell(size, units)
    project = torch.nn.Linear(units, size)
    with torch.no_grad():
        cell.weight_ih.copy_(kernel.T)
        cell.weight_hh.copy_(recurrent.T)
        cell.bias_ih.copy_(bias)
        cell.bias_hh.zero_()
        project.weight.copy_(out.T)
        # Padding is never written, as it is not by ours.
        project.bias.copy_(out_bias)
        project.bias[0] = -torch.inf
    one_hot = torch.eye(size)
    first = int(arrays["eos_id"])

    def step(ids, h, c):
        h, c = cell(one_hot[ids], (h, c))
        logits = project(h)
        if drawn:
            ids = torch.multinomial(logits.softmax(-1), 1)[:, 0]
        else:
            ids = logits.argmax(-1)
        return ids, h, c

    if compiled:
        step = torch.compile(step)

    @torch.inference_mode()
    def write(length):
        ids = torch.full((batch,), first)
        h = c = torch.zeros(batch, units)
        written = []
        for _ in range(length):
            ids, h, c = step(ids, h, c)
            written.append(ids)
        return torch.stack(written, 1).numpy()

    return write


def writing(weights, batch, seconds, drawn=False, compiled=False):
    """Measures characters a second, with the threads that suit it best."""
    import torch

    write = writer(weights, batch, drawn, compiled)
    write(8)
    rates = {}
    for threads in range(1, torch.get_num_threads() + 1):
        torch.set_num_threads(threads)
        rates[threads] = _rate(write, seconds / 4)
    torch.set_num_threads(max(rates, key=rates.get))
    length = max(1, int(seconds * max(rates.values())))

    def run():
        begin = time.perf_counter()
        write(length)
        return batch * length / (time.perf_counter() - begin)

    return run


def _rate(write, seconds):
    """Returns steps a second, from about so many of them."""
    length = 8
    while True:
        begin = time.perf_counter()
        write(length)
        passed = time.perf_counter() - begin
        if passed >= seconds / 2:
            return length / passed
        length *= 2
