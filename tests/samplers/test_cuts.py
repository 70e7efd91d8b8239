"""Each cut keeps what a plain NumPy reading of its paper keeps."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_chargen.samplers import (
    XTC,
    MinP,
    Sampler,
    TopK,
    TopNSigma,
    TopP,
    Typical,
)
from keras_chargen.samplers import threshold as threshold_room

INF = float("inf")
# Whole eighths lie far enough apart for float32 to order their functions.
LOGITS = hnp.arrays(
    "float32",
    (2, 8),
    elements=st.integers(-80, 80).map(lambda n: n / 8) | st.just(-INF),
).filter(lambda logits: np.isfinite(logits).any(axis=1).all())
SPREAD = np.log(np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04]))


def probabilities(row):
    weights = np.exp(np.float64(row) - np.max(row))
    return weights / weights.sum()


def top_k(row, k):
    least = sorted(row, reverse=True)[min(k, len(row)) - 1]
    return (row >= least) & np.isfinite(row)


def by_mass(order, p, share):
    """Down an order until the mass is there; and all that tie with the last."""
    keep, mass = np.zeros(len(p), bool), 0.0
    for key in sorted(set(order[p > 0]), reverse=True):
        keep |= order == key
        mass = p[keep].sum()
        # A border that float32 may see on either side says nothing.
        assume(abs(mass - share) > 1e-5)
        if mass >= share:
            break
    return keep & (p > 0)


def kept(result, logits):
    """What stayed; and it stayed as it was."""
    keep = np.isfinite(result)
    np.testing.assert_array_equal(result[keep], logits[keep])
    return keep


@pytest.fixture(params=["bisect", "sort"], autouse=True)
def both_ways(request, monkeypatch):
    """Every backend can find a threshold in both ways."""
    monkeypatch.setattr(
        threshold_room, "sorts_slowly", lambda: request.param == "bisect"
    )


@given(LOGITS, st.integers(1, 10))
def test_top_k_keeps_the_k_likeliest_and_their_equals(apply, logits, k):
    expected = [top_k(row, k) for row in logits]
    np.testing.assert_array_equal(
        kept(apply(TopK(k), logits), logits), expected
    )


@given(LOGITS, st.floats(0.01, 0.99))
def test_top_p_keeps_the_nucleus(apply, logits, share):
    expected = [by_mass(row, probabilities(row), share) for row in logits]
    result = apply(TopP(share), logits)
    np.testing.assert_array_equal(kept(result, logits), expected)


@given(LOGITS, st.floats(0.01, 0.99))
def test_typical_keeps_what_surprises_as_expected(apply, logits, share):
    expected = []
    for row in logits:
        p = probabilities(row)
        bits = -np.log(p, where=p > 0, out=np.zeros_like(p))
        order = -np.abs((p * bits).sum() - bits)
        gaps = np.diff(np.unique(order[p > 0]))
        assume(not ((gaps > 0) & (gaps < 1e-4)).any())
        order = np.round(order, 6)
        expected.append(by_mass(order, p, share))
    result = apply(Typical(share), logits)
    np.testing.assert_array_equal(kept(result, logits), expected)


@given(LOGITS, st.floats(0, 1))
def test_min_p_keeps_a_share_of_the_likeliest(apply, logits, share):
    relative = np.exp(np.float64(logits) - logits.max(axis=1, keepdims=True))
    assume((np.abs(relative - share) > 1e-6)[relative < 1].all())
    keep = (relative >= share) & np.isfinite(logits)
    np.testing.assert_array_equal(
        kept(apply(MinP(share), logits), logits), keep
    )


@given(LOGITS, st.floats(0, 4))
def test_top_n_sigma_keeps_what_is_near_the_largest(apply, logits, n):
    expected = []
    for row in np.float64(logits):
        border = row.max() - n * row[np.isfinite(row)].std()
        assume((np.abs(row - border) > 1e-4)[row < row.max()].all())
        expected.append((row >= border) & np.isfinite(row))
    result = apply(TopNSigma(n), logits)
    assume(n > 1e-3 or n == 0)
    np.testing.assert_array_equal(kept(result, logits), expected)


@given(LOGITS, st.floats(0.01, 1), st.floats(0, 0.9375), st.floats(0, 1))
def test_xtc_leaves_the_least_of_the_top_choices(
    apply, logits, threshold, chance, probability
):
    assume(abs(chance - probability) > 1e-6)
    expected = []
    for row in logits:
        p = probabilities(row)
        assume((np.abs(p - threshold) > 1e-6).all())
        top = p >= threshold
        out = top & (p > p[top].min()) if top.any() else top
        gone = out & (chance < probability)
        expected.append(np.isfinite(row) & ~gone)
    result = apply(XTC(probability, threshold), logits, chance=[chance] * 2)
    np.testing.assert_array_equal(kept(result, logits), expected)


@pytest.mark.parametrize(
    "sampler, keep",
    [
        (Sampler("top-k", top_k=3), 3),
        (Sampler("top-p", top_p=0.7), 3),
        (Sampler("min-p", min_p=0.2), 4),
        (Sampler("top-n-sigma", n_sigma=1.5), 3),
    ],
)
def test_draws_follow_what_a_cut_leaves(fits, sampler, keep):
    exact = np.exp(SPREAD) * (np.arange(6) < keep)
    fits(sampler, SPREAD, exact)


def test_draws_follow_what_typical_leaves(fits):
    p = np.exp(SPREAD)
    distance = np.abs((p * -SPREAD).sum() + SPREAD)
    order = np.argsort(distance)
    count = np.searchsorted(np.cumsum(p[order]), 0.5) + 1
    exact = np.where(np.isin(np.arange(6), order[:count]), p, 0)
    assert 1 < (exact > 0).sum() < 6
    fits(Sampler("typical", typical_p=0.5), SPREAD, exact)


def test_draws_follow_both_outcomes_of_xtc(fits):
    p = np.exp(SPREAD) / np.exp(SPREAD).sum()
    # Of 0.4, 0.25 and 0.15, which reach 0.12, only 0.15 stays.
    left = np.where(np.arange(6) < 2, 0, p)
    exact = 0.7 * p + 0.3 * left / left.sum()
    fits(Sampler("xtc", probability=0.3, threshold=0.12), SPREAD, exact)


def test_equals_at_the_border_stay_together(apply):
    logits = np.array([[1, 3, 1, 1, 0, 0, 0, 0]], "float32")
    assert kept(apply(TopK(2), logits), logits).sum() == 4


@pytest.mark.parametrize(
    "transform", [TopK(1), TopP(1e-6), Typical(1e-6), MinP(1), TopNSigma(0)]
)
def test_one_id_stays_however_hard_the_cut(apply, transform):
    logits = np.array([[5, 90, -INF, -90, 1, 2, 3, 4]], "float32")
    assert kept(apply(transform, logits), logits).tolist() == [
        [i == 1 for i in range(8)]
    ]


@pytest.mark.parametrize("transform", [TopP(1.0), Typical(1.0), MinP(0.0)])
def test_the_widest_cut_keeps_all(apply, transform):
    logits = np.array([[5, 9, 2, -9, 1, 2, 3, 4]], "float32")
    np.testing.assert_array_equal(apply(transform, logits), logits)


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: TopK(0), "top_k"),
        (lambda: TopK(2.5), "top_k"),
        (lambda: TopP(0), "top_p"),
        (lambda: TopP(1.1), "top_p"),
        (lambda: MinP(-0.1), "min_p"),
        (lambda: Typical(0), "typical_p"),
        (lambda: TopNSigma(-1), "n_sigma"),
        (lambda: TopNSigma(INF), "n_sigma"),
        (lambda: XTC(1.5), "probability"),
        (lambda: XTC(0.5, 0), "threshold"),
        (lambda: XTC(True), "probability"),
    ],
)
def test_a_wrong_number_is_refused_when_the_object_is_made(make, name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        make()
