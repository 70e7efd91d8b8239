"""Compiled functions give what they give eagerly, and see new values."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_chargen.compilation import (
    compile_function,
    compile_scan,
    gains_by_bfloat16,
    has_gradients,
    kept,
    round_up,
    trains_with_xla,
    value_and_gradients,
)

BACKEND = keras.backend.backend()


def arrays(nested):
    return keras.tree.map_structure(ops.convert_to_numpy, nested)


def test_nested_arguments_give_nested_results():
    run = compile_function(lambda a, b: {"sum": a + b["x"], "pair": (a, a)})
    x = np.array([1.0, 2.0], "float32")
    result = arrays(run(x, {"x": 3 * x}))
    assert result["sum"].tolist() == [4, 8]
    assert [part.tolist() for part in result["pair"]] == [[1, 2], [1, 2]]


def test_results_can_be_arguments_again():
    run = compile_function(lambda a: (a + 1,))
    (a,) = run(np.zeros(2, "float32"))
    (a,) = run(a)
    assert arrays(a).tolist() == [2, 2]


def test_every_shape_is_served():
    run = compile_function(lambda a: ops.sum(a) + 0 * a)
    for size in (1, 3, 2, 3):
        result = arrays(run(np.ones(size, "float32")))
        assert result.tolist() == [size] * size


def test_new_values_of_variables_are_seen():
    variable = keras.Variable(np.ones(2, "float32"))
    run = compile_function(lambda a: a * variable, [variable])
    x = np.array([3.0, 4.0], "float32")
    assert arrays(run(x)).tolist() == [3, 4]
    variable.assign(np.array([2.0, 5.0], "float32"))
    assert arrays(run(x)).tolist() == [6, 20]


@pytest.mark.skipif(BACKEND not in ("jax", "tensorflow"), reason="is eager")
def test_one_shape_is_traced_once():
    traces = []

    def function(a):
        traces.append(a)
        return a + 1

    run = compile_function(function)
    for value in range(3):
        run(np.full(2, value, "float32"))
    assert len(traces) == 1


def count_up(carry, x):
    """Adds inputs up; stops when the sum of row 0 reaches its bound."""
    total = carry["total"] + x["add"]
    y = ops.cast(total, "int32")
    ys = {"sum": y, "half": total / 2}
    return {**carry, "total": total}, ys, total[0] >= carry["bound"]


OUTPUTS = {"sum": "int32", "half": "float32"}


def run_scan(scan, limit, bound=1e9, rows=6):
    xs = {"add": np.ones((rows, 2), "float32") * [[1, 10]]}
    carry = {
        "total": np.zeros(2, "float32"),
        "bound": np.float32(bound),
    }
    xs = {"add": xs["add"].astype("float32")}
    carry, ys = scan(carry, xs, np.int32(limit))
    ys = arrays(ys)
    np.testing.assert_allclose(ys["half"], ys["sum"] / 2)
    return arrays(carry)["total"].tolist(), ys["sum"]


def test_a_scan_carries_on_and_collects():
    total, ys = run_scan(compile_scan(count_up, OUTPUTS), limit=6)
    assert total == [6, 60]
    assert ys[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert ys.dtype == np.int32


def test_a_scan_ends_at_its_limit():
    total, ys = run_scan(compile_scan(count_up, OUTPUTS), limit=2)
    assert total == [2, 20]
    assert ys[:2, 1].tolist() == [10, 20]


def test_a_scan_ends_where_the_body_says():
    total, ys = run_scan(compile_scan(count_up, OUTPUTS), limit=6, bound=3)
    assert total == [3, 30]
    assert ys[:3, 0].tolist() == [1, 2, 3]


@pytest.mark.skipif(BACKEND in ("numpy", "openvino"), reason="runs each step")
def test_another_limit_is_no_other_program():
    traces = []

    def body(carry, x):
        traces.append(x)
        return count_up(carry, x)

    scan = compile_scan(body, OUTPUTS)
    run_scan(scan, limit=6)
    traced = len(traces)
    for limit in (1, 4):
        run_scan(scan, limit=limit, bound=limit)
    assert len(traces) == traced


def test_a_scan_sees_new_values_of_variables():
    variable = keras.Variable(np.ones(2, "float32"))

    def body(carry, x):
        return carry, {"y": x + variable}, ops.any(carry > 9)

    scan = compile_scan(body, {"y": "float32"}, [variable])
    for value in (1, 5):
        variable.assign(np.full(2, value, "float32"))
        x = np.ones((3, 2), "float32")
        _, ys = scan(np.zeros(2, "float32"), x, np.int32(3))
        assert arrays(ys)["y"].tolist() == [[1 + value] * 2] * 3


@pytest.mark.skipif(
    BACKEND in ("jax", "tensorflow", "openvino"),
    reason="compiled code cannot look at values",
)
def test_the_body_of_a_scan_may_look_at_values():
    def body(carry, x):
        up = float(ops.convert_to_numpy(x[0])) > 0
        carry = carry + (1 if up else -10)
        return carry, {"y": carry}, ops.any(carry > 9)

    scan = compile_scan(body, {"y": "float32"})
    x = np.array([[1], [0], [1]], "float32")
    _, ys = scan(np.zeros(1, "float32"), x, np.int32(3))
    assert arrays(ys)["y"][:, 0].tolist() == [1, -9, -8]


@pytest.mark.trains
def test_gradients_are_taken_inside_a_compiled_function():
    def function(a, rows):
        def value(tensors):
            one, table, _ = tensors
            found = ops.take(table, rows, axis=0)
            return ops.sum(one * one) + 3 * ops.sum(found), {"found": found}

        unused = ops.ones((2,))
        return value_and_gradients(value, [a, 2 * a, unused])

    a = np.array([1.0, 2.0, 4.0], "float32")
    (value, others), gradients = arrays(
        compile_function(function)(a, np.array([1, 1, 0], "int32"))
    )
    assert value == 21 + 3 * 10
    assert others["found"].tolist() == [4, 4, 2]
    # What a row is looked up from has a gradient as large as itself.
    assert [x.tolist() for x in gradients] == [[2, 4, 8], [3, 6, 0], [0, 0]]


def test_bfloat16_gains_where_the_processor_has_it(monkeypatch):
    if BACKEND != "torch":
        assert not gains_by_bfloat16()
        return
    import torch

    for has in (True, False):
        monkeypatch.setattr(
            torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has
        )
        assert gains_by_bfloat16() == has


def test_only_jax_trains_with_xla():
    assert trains_with_xla() == (BACKEND == "jax")


def test_what_trains_has_gradients():
    assert has_gradients() == (BACKEND in ("tensorflow", "jax", "torch"))


def test_what_is_kept_is_made_once_for_a_key():
    class Model:
        pass

    made = []

    def make():
        made.append(1)
        return object()

    model = Model()
    one = kept(model, "a", make)
    assert kept(model, "a", make) is one
    assert kept(model, "b", make) is not one
    assert kept(Model(), "a", make) is not one
    assert len(made) == 3


def test_sizes_are_rounded_up_to_powers_of_two():
    sizes = [round_up(size) for size in (1, 2, 3, 4, 5, 1000)]
    assert sizes == [1, 2, 4, 4, 8, 1024]
