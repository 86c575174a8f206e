"""Tests of tinygrad_lite and its two scripts: every rule against central differences and a second engine."""

from __future__ import annotations

import contextlib
import copy
import doctest
import gc
import hashlib
import http.server
import json
import math
import operator
import os
import pickle
import re
import signal
import site
import socket
import subprocess
import sys
import threading
import time
import warnings
import weakref
from base64 import b64encode
from pathlib import Path
from typing import Any

import autograd
import autograd.numpy as anp
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, basic_indices, integer_array_indices, mutually_broadcastable_shapes

import tinygrad_lite
import train_gender
import train_linear
from tinygrad_lite import SGD, Tensor, defvjp, gradcheck, no_grad, relu, sigmoid

settings.register_profile("suite", deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
settings.load_profile("suite")

HERE = Path(__file__).parent
SEEDS = st.integers(0, 2**32 - 1)


def leaf(data: Any, dtype: Any = float) -> Tensor:
    return Tensor(np.array(data, dtype), requires_grad=True)


def grads(f: Any, *arrays: Any, weights: Any = None) -> tuple[Any, list[Any]]:
    """The value of f and the gradients of its weighted sum with respect to every array."""
    leaves = [leaf(a, np.asarray(a).dtype) for a in arrays]
    out = f(*leaves)
    out.backward(np.ones(out.shape) if weights is None else weights)
    return out.data, [t.grad for t in leaves]


# --- The rules --------------------------------------------------------------------------------------------------------
# Each case calls one row of the table, on NumPy, on Tensors and, through autograd's own NumPy, on the second engine.
# A domain says where random arguments are drawn from, away from the kinks, which have tests of their own.

DOMAINS = {
    "any": lambda rng, shape: rng.uniform(0.2, 2.0, shape) * rng.choice([-1, 1], shape),
    "positive": lambda rng, shape: rng.uniform(0.3, 2.0, shape),
}


def elementwise(name: str, *domains: str) -> Any:
    return name, domains, lambda xp, *args: getattr(xp, name)(*args)


ELEMENTWISE = [
    ("add", ("any", "any"), lambda xp, x, y: x + y),
    ("subtract", ("any", "any"), lambda xp, x, y: x - y),
    ("multiply", ("any", "any"), lambda xp, x, y: x * y),
    ("divide", ("any", "any"), lambda xp, x, y: x / y),
    ("power", ("positive", "any"), lambda xp, x, y: x**y),
    ("negative", ("any",), lambda xp, x: -x),
    ("positive", ("any",), lambda xp, x: +x if isinstance(x, Tensor) else 1 * x),
    ("absolute", ("any",), lambda xp, x: abs(x)),
    ("power", ("any",), lambda xp, x: x**3),
    ("power", ("any",), lambda xp, x: x**-2),
    ("power", ("any",), lambda xp, x: 1.5**x),
    elementwise("add", "any", "any"),
    elementwise("multiply", "any", "any"),
    elementwise("power", "positive", "any"),
    elementwise("exp", "any"),
    elementwise("log", "positive"),
    elementwise("sqrt", "positive"),
    elementwise("sin", "any"),
    elementwise("cos", "any"),
    elementwise("tanh", "any"),
    ("where", ("any", "any"), lambda xp, x, y: xp.where(x > y, x * 3, y * 2)),
    ("clip", ("any",), lambda xp, x: xp.clip(x, -0.9, 1.1)),
    ("_relu", ("any",), lambda xp, x: relu(x) if xp is np else xp.maximum(x, 0)),
    ("_sigmoid", ("any",), lambda xp, x: sigmoid(x) if xp is np else 1 / (1 + xp.exp(-x))),
    ("_convert", ("any",), lambda xp, x: (x.astype(np.float64) if isinstance(x, Tensor) else x) * 1.0),
]

REDUCTIONS = ["sum", "mean", "max", "min", "prod", "var", "std"]

OTHERS = [
    ("reshape", (2, 3, 2), lambda xp, x: xp.reshape(x, (4, -1)) * np.arange(12.0).reshape(4, 3)),
    ("ravel", (2, 3), lambda xp, x: xp.ravel(x) * np.arange(6.0)),
    ("transpose", (2, 3, 4), lambda xp, x: xp.transpose(x) * np.arange(24.0).reshape(4, 3, 2)),
    ("transpose", (2, 3, 4), lambda xp, x: xp.transpose(x, (1, 2, 0)) * np.arange(24.0).reshape(3, 4, 2)),
    ("swapaxes", (2, 3, 4), lambda xp, x: xp.swapaxes(x, 0, -1) * np.arange(24.0).reshape(4, 3, 2)),
    ("squeeze", (1, 3, 1), lambda xp, x: xp.squeeze(x) * np.arange(3.0)),
    ("squeeze", (1, 3, 1), lambda xp, x: xp.squeeze(x, axis=0) * np.arange(3.0)[:, None]),
    ("broadcast_to", (3, 1), lambda xp, x: xp.broadcast_to(x, (3, 4)) * np.arange(12.0).reshape(3, 4)),
    ("amax", (3, 4), lambda xp, x: xp.amax(x, axis=0)),
    ("amin", (3, 4), lambda xp, x: xp.amin(x, axis=0)),
]

INDICES: list[Any] = [
    1,
    -1,
    (0, 2),
    slice(None, None, 2),
    slice(None, None, -1),
    (slice(None), None, slice(1, 3)),
    Ellipsis,
    (Ellipsis, 1),
    None,
    (),
    [2, 0, 2],
    (np.array([0, 0, 1]), np.array([1, 1, -1])),
    (slice(None), [3, 3, 3]),
    np.array([[0, 1], [1, 1]]),
    np.array([True, False, True]),
    np.arange(12).reshape(3, 4) % 2 == 0,
    (np.array([True, False, True]), 1),
    np.zeros((3, 4), bool),
    slice(0, 0),
]

MATMUL_SHAPES = [
    ((3,), (3,)),
    ((3,), (3, 2)),
    ((2, 3), (3,)),
    ((2, 3), (3, 4)),
    ((1, 3), (3, 1)),
    ((3,), (5, 3, 2)),
    ((5, 2, 3), (3,)),
    ((5, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)),
    ((5, 1, 2, 3), (4, 3, 2)),
    ((1, 2, 3), (4, 3, 1)),
    ((0, 3), (3, 2)),
    ((2, 0), (0, 3)),
    ((0,), (0,)),
]


def central_differences(f: Any, arrays: list[Any], weights: Any, eps: float = 1e-6) -> list[Any]:
    """The gradient of the weighted sum of f by (f(x + eps) - f(x - eps)) / (2 eps), entry by entry."""
    gradients = []
    for i, array in enumerate(arrays):
        gradient = np.zeros(np.shape(array))
        for entry in np.ndindex(gradient.shape):
            sums = []
            for sign in (1, -1):
                moved = [np.array(a, dtype=float) for a in arrays]
                moved[i][entry] += sign * eps
                sums.append(np.sum(weights * np.asarray(f(*moved))))
            gradient[entry] = (sums[0] - sums[1]) / (2 * eps)
        gradients.append(gradient)
    return gradients


def second_engine(f: Any, arrays: list[Any], weights: Any) -> list[Any]:
    def total(*xs: Any) -> Any:
        return anp.sum(weights * f(*xs))

    return [autograd.grad(total, i)(*arrays) for i in range(len(arrays))]


def check_rule(case: Any, arrays: list[Any], rng: Any, second: bool = True) -> None:
    """First order against central differences and the second engine; second order against central differences."""

    def f(*xs: Any) -> Any:
        return case(np, *xs)

    expected = np.asarray(f(*arrays))
    weights = rng.uniform(0.5, 1.5, expected.shape)
    value, gradients = grads(f, *arrays, weights=weights)
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    others = second_engine(lambda *xs: case(anp, *xs), arrays, weights) if second else gradients
    for g, array, numeric, other in zip(
        gradients, arrays, central_differences(f, arrays, weights), others, strict=True
    ):
        assert g.shape == np.shape(array)
        assert g.dtype == np.float64
        np.testing.assert_allclose(g, numeric, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(g, other, rtol=1e-10, atol=1e-12)

    def gradient_sum(*xs: Any) -> Any:  # of all arguments, as a function of all arguments
        leaves = [x if isinstance(x, Tensor) else leaf(x) for x in xs]
        f(*leaves).backward(weights, create_graph=True)
        found = [t.grad for t in leaves]
        for t in leaves:
            t.grad = None
        return sum((g * (g + i)).sum() for i, g in enumerate(found))

    leaves = [leaf(a) for a in arrays]
    total = gradient_sum(*leaves)
    if total.requires_grad:
        total.backward()
    numeric = central_differences(lambda *xs: gradient_sum(*xs).item(), arrays, 1.0)
    for t, expected_gradient in zip(leaves, numeric, strict=True):
        g = np.zeros(t.shape) if t.grad is None else t.grad
        np.testing.assert_allclose(g, expected_gradient, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("case", ELEMENTWISE, ids=lambda case: case[0])
@given(data=st.data(), seed=SEEDS)
@settings(max_examples=12)
def test_elementwise_rules_agree_with_differences_and_second_engine_for_all_shapes_that_broadcast(case, data, seed):
    _, domains, function = case
    shapes = data.draw(mutually_broadcastable_shapes(num_shapes=len(domains), max_dims=3, max_side=3)).input_shapes
    rng = np.random.default_rng(seed)
    check_rule(function, [DOMAINS[d](rng, shape) for d, shape in zip(domains, shapes, strict=True)], rng)


@pytest.mark.parametrize("name", REDUCTIONS)
@given(data=st.data(), seed=SEEDS)
@settings(max_examples=20)
def test_reductions_agree_with_differences_and_second_engine_for_all_axes(name, data, seed):
    shape = data.draw(array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=3))
    axes = st.none() | st.sets(st.integers(-len(shape), len(shape) - 1)).map(tuple) if shape else st.none()
    if shape:
        axes = axes | st.integers(-len(shape), len(shape) - 1)
    axis = data.draw(axes.filter(lambda a: not isinstance(a, tuple) or len({i % len(shape) for i in a}) == len(a)))
    options = {"axis": axis, "keepdims": data.draw(st.booleans())}
    if name in ("var", "std"):
        options["ddof"] = data.draw(st.sampled_from([0, 1, 0.5]))
    rng = np.random.default_rng(seed)
    x = DOMAINS["any"](rng, shape)
    count = x.size // max(np.sum(x, axis=axis).size, 1)
    if name in ("var", "std") and count == 1:  # nothing varies: the tests of conventions look at that
        return
    # autograd's prod divides by the factors and its std and var know no tuples, () and ddof as ours do
    plain = axis is None or isinstance(axis, int)
    second = plain and not (name in ("var", "std") and options["ddof"] not in (0, 1))
    check_rule(lambda xp, t: getattr(xp, name)(t, **options), [x], rng, second)


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case[0])
def test_shape_functions_agree_with_differences_and_second_engine(case):
    rng = np.random.default_rng(0)
    check_rule(case[2], [DOMAINS["any"](rng, case[1])], rng)


def test_negative_axes_and_new_leading_axes():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3, 4, 2))
    assert gradcheck(lambda x: np.transpose(x, (1, -1, 0)) * weights, rng.normal(size=(2, 3, 4)))
    assert gradcheck(lambda x: x.transpose(1, -1, 0) * weights, rng.normal(size=(2, 3, 4)))
    assert gradcheck(lambda x: np.broadcast_to(x, (3, 4, 2)) * weights, rng.normal(size=(4, 1)))
    assert gradcheck(lambda x: x.swapaxes(-1, 0).T * weights, rng.normal(size=(3, 4, 2)))


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indexing_agrees_with_differences_and_second_engine(index):
    rng = np.random.default_rng(0)
    check_rule(lambda xp, x: x[index] * 1.5, [rng.normal(size=(3, 4))], rng)


@pytest.mark.parametrize("shapes", MATMUL_SHAPES, ids=str)
def test_matmul_agrees_with_differences_for_all_pairs_of_ranks(shapes):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape) for shape in shapes]
    check_rule(lambda xp, x, y: x @ y, arrays, rng, second=all(a.size for a in arrays))
    np.testing.assert_array_equal((Tensor(arrays[0]) @ arrays[1]).data, arrays[0] @ arrays[1])


@given(
    shapes=mutually_broadcastable_shapes(signature=np.matmul.signature, max_dims=2, max_side=3, min_side=1), seed=SEEDS
)
def test_matmul_agrees_with_differences_for_random_shapes(shapes, seed):
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=shape) for shape in shapes.input_shapes]
    check_rule(lambda xp, x, y: xp.matmul(x, y), arrays, rng)


@given(data=st.data(), shape=array_shapes(max_dims=3, max_side=4), seed=SEEDS)
def test_indexing_agrees_with_differences_for_random_indices(data, shape, seed):
    index = data.draw(
        basic_indices(shape, allow_newaxis=True)
        | integer_array_indices(shape, result_shape=array_shapes(max_dims=2, max_side=3))
        | st.integers(0, 2**16).map(lambda bits: np.random.default_rng(bits).random(shape) < 0.5)
    )
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    check_rule(lambda xp, x: x[index] * 1.5, [x], rng)
    arrays = isinstance(index, tuple) and any(isinstance(i, np.ndarray) for i in index)
    leaf_index = tuple(map(Tensor, index)) if arrays else index
    np.testing.assert_array_equal(leaf(x)[leaf_index].data, x[index])


@given(data=st.data(), shape=array_shapes(min_dims=0, max_dims=4, max_side=3), seed=SEEDS)
def test_transposes_and_reshapes_agree_with_differences_for_random_axes(data, shape, seed):
    axes = tuple(data.draw(st.permutations(range(len(shape)))))
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    weights = rng.normal(size=x.transpose(axes).shape)
    check_rule(lambda xp, x: xp.transpose(x, axes) * weights, [x], rng)
    check_rule(lambda xp, x: xp.reshape(xp.transpose(x, axes), -1) * weights.ravel(), [x], rng)


def test_every_row_of_the_table_has_a_case():
    covered = {name for name, *_ in ELEMENTWISE} | set(REDUCTIONS) | {name for name, *_ in OTHERS}
    covered |= {"getitem", "_add_at", "matmul"}  # test_indexing (second order for _add_at), test_matmul
    rows = {row.function.__name__ for row in tinygrad_lite._table.values() if row.vjps or row.expression}
    rows -= {"<lambda>", "erf"}  # of the tests
    assert rows <= covered


@given(shapes=mutually_broadcastable_shapes(num_shapes=2, max_dims=4, min_side=0, max_side=3), seed=SEEDS)
@settings(max_examples=200)
def test_gradients_of_broadcast_operands_have_the_operands_shape_and_add_up(shapes, seed):
    x, y = (np.random.default_rng(seed).normal(size=shape) for shape in shapes.input_shapes)
    value, (gx, gy) = grads(lambda a, b: a * 2 + b * 3, x, y)
    assert value.shape == shapes.result_shape
    np.testing.assert_array_equal(gx, np.full(x.shape, 2.0 * (value.size / x.size if x.size else 0)))
    np.testing.assert_array_equal(gy, np.full(y.shape, 3.0 * (value.size / y.size if y.size else 0)))


@given(shapes=mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3), seed=SEEDS)
def test_float32_stays_float32_in_every_rule(shapes, seed):
    rng = np.random.default_rng(seed)
    cases = [(domains, function) for _, domains, function in ELEMENTWISE if function.__name__ == "<lambda>"]
    seen: list[Any] = []
    fit = tinygrad_lite._fit

    def watched(g: Any, *args: Any) -> Any:
        seen.append(g.dtype)
        return fit(g, *args)

    for domains, function in cases:
        if function is ELEMENTWISE[-1][2]:  # the conversion to float64
            continue
        arrays = [DOMAINS[d](rng, s).astype(np.float32) for d, s in zip(domains, shapes.input_shapes, strict=False)]
        leaves = [Tensor(a, requires_grad=True) for a in arrays]
        out = function(np, *leaves)
        tinygrad_lite._fit = watched
        try:
            out.backward(np.ones(out.shape, np.float32))
        finally:
            tinygrad_lite._fit = fit
        assert out.dtype == np.float32
        assert all(t.grad.dtype == np.float32 for t in leaves)
    for name in REDUCTIONS:
        x = Tensor(DOMAINS["any"](rng, (3, 2)).astype(np.float32), requires_grad=True)
        out = getattr(x, name)(axis=0)
        tinygrad_lite._fit = watched
        try:
            out.backward(np.ones(out.shape, np.float32))
        finally:
            tinygrad_lite._fit = fit
        assert out.dtype == x.grad.dtype == np.float32
    assert set(seen) == {np.dtype(np.float32)}


def test_mixed_dtypes_follow_numpy_and_gradients_the_operand():
    x, y = leaf([1.0, 2.0], np.float32), leaf([3.0, 4.0], np.float64)
    out = x * y + 1
    assert out.dtype == np.float64
    out.sum().backward()
    assert (x.grad.dtype, y.grad.dtype) == (np.float32, np.float64)
    np.testing.assert_array_equal(x.grad, np.float32([3, 4]))
    for other in (2, 2.0, True, np.float32(2)):
        assert all(op(x, other).dtype == np.float32 for op in (operator.add, operator.mul, operator.pow))
        assert all(op(other, x).dtype == np.float32 for op in (operator.sub, operator.truediv))
    for other in (np.float64(2), np.arange(2), [1, 2], np.array(2.0)):
        assert (x * other).dtype == (other * x).dtype == (np.float32([1, 2]) * other).dtype == np.float64
    half = leaf(np.full(50_000, 2.0), np.float16)  # the sum is beyond float16
    assert half.mean().item() == 2.0
    half.mean().backward()
    assert half.grad.dtype == np.float16


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_all_float_dtypes_can_require_gradients(dtype):
    x = leaf([1.0, 2.0], dtype)
    (x**2).sum().backward()
    assert x.grad.dtype == dtype
    np.testing.assert_array_equal(x.grad, np.array([2, 4], dtype))


# --- Conventions where a derivative is a choice -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "x", "expected"),
    [
        (abs, 0.0, 0.0),
        (relu, [0.0, -1.0, 2.0], [0.0, 0.0, 1.0]),
        (lambda t: t.clip(-1, 1), [-1.0, 1.0, 2.0, -2.0], [1.0, 1.0, 0.0, 0.0]),
        (lambda t: t.clip(max=1), [-5.0, 2.0], [1.0, 0.0]),
        (lambda t: t.clip(min=1), [-5.0, 2.0], [0.0, 1.0]),
        (lambda t: t.max(), [1.0, 3.0, 3.0], [0.0, 0.5, 0.5]),
        (lambda t: t.min(axis=0), [1.0, 1.0, 3.0, 1.0], [1 / 3, 1 / 3, 0.0, 1 / 3]),
        (lambda t: t**2, [0.0, -3.0], [0.0, -6.0]),
        (lambda t: t**3, [0.0, -2.0], [0.0, 12.0]),
        (lambda t: t**1, [0.0, -2.0], [1.0, 1.0]),
        (lambda t: t**0, [0.0, -2.0], [0.0, 0.0]),
        (lambda t: t**0.0, [0.0, 5.0], [0.0, 0.0]),
        (lambda t: t ** np.array([0, 1, 2]), [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]),
        (lambda t: t**-1, [-2.0, 4.0], [-0.25, -1 / 16]),
        (lambda t: 0.0**t, [1.0, 2.0], [0.0, 0.0]),
        (lambda t: 0**t, [0.0, 2.0], [0.0, 0.0]),
        (lambda t: 2**t, [0.0, 3.0], [math.log(2), 8 * math.log(2)]),
        (lambda t: t.std(), [2.0, 2.0], [0.0, 0.0]),
        (lambda t: t.std(), [2.0], [0.0]),
        (lambda t: t.prod(), [0.0, 2.0, 3.0], [6.0, 0.0, 0.0]),
        (lambda t: t.prod(), [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]),
        (lambda t: t.prod(), [-1.0, 2.0, 3.0, 4.0, 5.0], [120.0, -60.0, -40.0, -30.0, -24.0]),
        (sigmoid, [-800.0, 0.0, 800.0], [0.0, 0.25, 0.0]),
    ],
)
def test_convention(f, x, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, (g,) = grads(f, np.array(x))
    np.testing.assert_allclose(g, expected, rtol=1e-12)


def test_square_root_at_zero_is_infinitely_steep_as_in_pytorch():
    with np.errstate(divide="ignore"):
        assert grads(lambda t: t.sqrt(), 0.0)[1][0] == np.inf
        assert grads(lambda t: t**0.5, 0.0)[1][0] == np.inf


def test_negative_base_with_integer_tensor_exponent():
    x, p = leaf([-2.0, -3.0]), Tensor([3, 2])
    (x**p).sum().backward()
    np.testing.assert_array_equal(x.grad, [12.0, -6.0])


def test_power_with_base_and_exponent_requiring_gradients_at_base_zero():
    x, p = leaf([0.0, 0.0, 2.0]), leaf([2.0, 0.0, 3.0])
    (x**p).sum().backward()
    np.testing.assert_allclose(x.grad, [0.0, 0.0, 12.0])
    np.testing.assert_allclose(p.grad, [0.0, 0.0, 8 * math.log(2)])


def test_clip_passes_gradients_to_bounds_that_are_tensors():
    x, low, high = leaf([-2.0, 0.5, 3.0]), leaf(-1.0), leaf([1.0, 1.0, 1.0])
    out = x.clip(low, high)
    np.testing.assert_array_equal(out.data, [-1.0, 0.5, 1.0])
    out.backward([1.0, 10.0, 100.0])
    np.testing.assert_array_equal(x.grad, [0.0, 10.0, 0.0])
    assert low.grad == 1.0
    np.testing.assert_array_equal(high.grad, [0.0, 0.0, 100.0])
    crossed = leaf(5.0)
    leaf([0.0, 9.0]).clip(crossed, 1.0).sum().backward()
    assert crossed.grad == 0.0


def test_masked_gradients_stop_infinities():
    x = leaf([0.0, 1.0])
    with np.errstate(divide="ignore"):
        np.log(relu(x)).sum().backward()
    np.testing.assert_array_equal(x.grad, [0.0, 1.0])


def test_nan_and_infinity_pass_through():
    x = leaf([np.nan, np.inf, -np.inf, 1.0])
    (x * 2).sum().backward()
    np.testing.assert_array_equal(x.grad, [2.0] * 4)
    np.testing.assert_array_equal(grads(lambda t: np.tanh(t), np.array([np.inf, -np.inf]))[1][0], [0.0, 0.0])
    assert math.isnan(grads(np.exp, np.nan)[1][0])


def test_size_zero_arrays_go_both_ways():
    x = leaf(np.zeros((0, 3)))
    for f in (np.sum, np.exp, lambda t: t.sum(axis=0), lambda t: t.prod(), lambda t: t @ np.ones(3), lambda t: t.T * 2):
        out = f(x)
        assert out.requires_grad
        out.backward(np.ones(out.shape))
        assert x.grad.shape == (0, 3)
    assert x.prod().item() == 1.0


# --- The engine -------------------------------------------------------------------------------------------------------


def test_diamond_and_reused_node():
    x = leaf(3.0)
    y = x * x
    z = y * x + y
    (z * z + z + y).backward()
    expected = autograd.grad(lambda x: (x**3 + x**2) ** 2 + (x**3 + x**2) + x**2)(3.0)
    assert x.grad == pytest.approx(expected, rel=1e-14)


def test_second_backward_accumulates_on_leaves_only():
    x = leaf(2.0)
    y = x * x
    z = y * y
    z.backward()
    assert x.grad == 32.0
    z.backward()
    assert x.grad == 64.0
    assert y.grad is None
    y.backward()
    assert x.grad == 68.0


def test_backward_twice_after_zero_grad_gives_the_same():
    x = leaf([1.0, 2.0])
    loss = (np.tanh(x) * x).sum()
    loss.backward()
    first = x.grad
    SGD([x], lr=0.1).zero_grad()
    assert x.grad is None
    loss.backward()
    np.testing.assert_array_equal(x.grad, first)


def test_optimizer_step_between_forward_and_backward_changes_no_gradient():
    w, b = leaf([2.0, 3.0]), leaf(1.0)
    loss = (w * w * b).sum()
    loss.backward()
    before = w.grad.copy(), b.grad.copy()
    optimizer = SGD([w, b], lr=0.5)
    optimizer.step()
    optimizer.zero_grad()
    loss.backward()
    np.testing.assert_array_equal(w.grad, before[0])
    np.testing.assert_array_equal(b.grad, before[1])
    np.testing.assert_array_equal(w.data, [2 - 0.5 * 4, 3 - 0.5 * 6])


def test_backward_from_a_leaf_gives_one():
    x = leaf(5.0)
    x.backward()
    assert x.grad == 1.0


def test_chain_of_a_million_nodes():
    x = leaf(1.0)
    y = x
    for _ in range(1_000_000):
        y = y * 1.000001
    y.backward()
    assert x.grad == pytest.approx(1.000001**1_000_000, rel=1e-9)
    del y  # freeing the chain must not recurse either


def test_wide_graph_of_many_branches():
    x = leaf(2.0)
    total = x * 0
    for i in range(10_000):
        total = total + x * i
    total.backward()
    assert x.grad == sum(range(10_000))


def test_graph_is_freed_without_the_garbage_collector():
    gc.disable()
    try:
        w = leaf(np.ones(3))
        y = np.exp(w * 2)
        value = weakref.ref(y.data)
        loss = (y * y).sum()
        loss.backward()
        tensors = [weakref.ref(y), weakref.ref(loss)]
        del y, loss
        assert value() is None
        assert all(ref() is None for ref in tensors)
    finally:
        gc.enable()


def test_large_arrays_that_no_rule_reads_are_not_kept():
    w, x = leaf(1.0), np.ones(100_000)
    u = w * x
    v = u + 1.0
    h = np.tanh(v)
    loss = (h * h).mean()
    kept = {name: weakref.ref(t.data) for name, t in {"u": u, "v": v, "h": h}.items()}
    del u, v, h
    assert {name for name, ref in kept.items() if ref() is not None} == {"h"}
    loss.backward()
    assert w.grad == pytest.approx(2 * math.tanh(2) / math.cosh(2) ** 2, rel=1e-12)


@pytest.mark.parametrize("case", ELEMENTWISE + OTHERS, ids=lambda case: case[0])
def test_rules_read_no_more_than_their_parameters_say(case, monkeypatch):
    rng = np.random.default_rng(0)
    if case in ELEMENTWISE:
        arrays = [DOMAINS[domain](rng, (3, 2)) for domain in case[1]]
    else:
        arrays = [rng.uniform(0.5, 2.0, case[1])]
    plain = grads(lambda *xs: np.sum(case[2](np, *xs)), *arrays)[1]
    monkeypatch.setattr(tinygrad_lite, "_LARGE", 0)
    for found, expected in zip(grads(lambda *xs: np.sum(case[2](np, *xs)), *arrays)[1], plain, strict=True):
        np.testing.assert_array_equal(found, expected)
    check_rule(case[2], arrays, rng)


@pytest.mark.parametrize("shapes", MATMUL_SHAPES[:11], ids=str)
def test_matmul_reads_no_more_than_its_parameters_say(shapes, monkeypatch):
    monkeypatch.setattr(tinygrad_lite, "_LARGE", 0)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape) for shape in shapes]
    check_rule(lambda xp, x, y: x @ y * 1.1, arrays, rng)
    check_rule(lambda xp, x: x @ arrays[1] * 1.1, arrays[:1], rng)
    check_rule(lambda xp, y: arrays[0] @ y * 1.1, arrays[1:], rng)


@pytest.mark.parametrize("name", [*REDUCTIONS, "index"])
@pytest.mark.parametrize("axis", [None, 0, (0, 1)])
def test_reductions_and_indices_read_no_more_than_their_parameters_say(name, axis, monkeypatch):
    monkeypatch.setattr(tinygrad_lite, "_LARGE", 0)
    rng = np.random.default_rng(0)
    x = rng.uniform(0.5, 2.0, (3, 4))
    function = (lambda xp, x: x[[0, -1, 0]] * 2) if name == "index" else (lambda xp, x: getattr(xp, name)(x * 2, axis))
    check_rule(function, [x], rng, second=False)


def test_gradients_shared_by_two_leaves_are_arrays_of_their_own():
    x, y, g = leaf([1.0, 2.0]), leaf([3.0, 4.0]), np.array([1.0, 1.0])
    (x + y).backward(g)
    x.grad += 5
    np.testing.assert_array_equal(y.grad, [1.0, 1.0])
    np.testing.assert_array_equal(g, [1.0, 1.0])
    s = leaf(np.zeros((2, 3)))
    s.sum().backward()
    assert s.grad.flags.writeable
    s.grad[0, 0] = 7.0
    np.testing.assert_array_equal(s.grad, [[7, 1, 1], [1, 1, 1]])
    z = leaf(1.0)
    z.backward()
    z.grad[...] = 3.0
    assert z.grad == 3.0
    assert isinstance(z.grad, np.ndarray)


def test_no_computation_for_constants():
    calls = []
    double = defvjp(
        lambda x, y: x + y,
        lambda g, out, x, y: calls.append("x") or g,
        lambda g, out, x, y: calls.append("y") or g,
    )
    x = leaf(1.0)
    double(x, 2.0).backward()
    double(x, Tensor(2.0)).backward()
    assert calls == ["x", "x"]
    assert not (Tensor(1.0) * 2).requires_grad


def test_no_grad_is_for_one_thread_and_nests():
    x = leaf(1.0)
    inside, leave, seen = threading.Event(), threading.Event(), []

    def other() -> None:
        with no_grad():
            seen.append((x * 2).requires_grad)
            inside.set()
            leave.wait(10)
        seen.append((x * 2).requires_grad)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    assert (x * 2).requires_grad
    leave.set()
    thread.join(10)
    assert seen == [False, True]
    with no_grad():
        with no_grad():
            pass
        assert not (x * 2).requires_grad
        assert not np.exp(x).requires_grad
        assert Tensor(1.0, requires_grad=True).requires_grad
    assert (x * 2).requires_grad
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert (x * 2).requires_grad


def test_no_grad_decorates_functions():
    @no_grad()
    def f(t: Tensor) -> Tensor:
        return t * 2

    assert not f(leaf(1.0)).requires_grad
    assert not f(leaf(1.0)).requires_grad
    assert (leaf(1.0) * 2).requires_grad


def test_threads_build_and_differentiate_graphs_of_their_own():
    results = {}

    def work(n: int) -> None:
        x = leaf(float(n))
        for _ in range(300):
            x.grad = None
            (x * x * x + x).backward()
        results[n] = x.grad.item()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: 3.0 * n * n + 1 for n in range(4)}


def test_create_graph_gives_derivatives_of_any_order():
    x = leaf(2.0)
    y = np.sin(x) * x**4
    expected = lambda x: anp.sin(x) * x**4  # noqa: E731
    for _ in range(4):
        y.backward(create_graph=True)
        y, x.grad = x.grad, None
        expected = autograd.grad(expected)
        assert isinstance(y, Tensor)
        assert y.item() == pytest.approx(expected(2.0), rel=1e-12)


def test_create_graph_uses_the_values_that_forward_saw():
    x = leaf(3.0)
    y = x**3
    x.data = 100.0
    y.backward(create_graph=True)
    assert x.grad.item() == 27.0
    g, x.grad = x.grad, None
    g.backward()
    assert x.grad == 18.0


def test_an_error_in_backward_leaves_all_gradients_as_they_were():
    def fails(g: Any, out: Any, x: Any) -> Any:
        raise RuntimeError("no")

    broken = defvjp(lambda x: x + 0, fails)
    x, y = leaf(1.0), leaf(1.0)
    z = broken(x * 1) + y
    with pytest.raises(RuntimeError):
        z.backward()
    assert x.grad is None
    assert y.grad is None


def test_random_programs_agree_with_second_engine():
    unary = [
        lambda xp, a: xp.tanh(a),
        lambda xp, a: xp.sin(a),
        lambda xp, a: xp.exp(-a * a),
        lambda xp, a: xp.mean(a, axis=0, keepdims=True) + a,
        lambda xp, a: xp.reshape(a, (4, 3)).T,
        lambda xp, a: a[::-1, [1, 1, 0, 3]],
        lambda xp, a: xp.sum(a) * 0.1 + a,
        lambda xp, a: (a @ a.T) @ a * 0.1,
    ]
    binary = [lambda a, b: a + b, lambda a, b: a * b, lambda a, b: a - b * b, lambda a, b: a / (1 + b * b)]
    for seed in range(100):
        rng = np.random.default_rng(seed)
        plan = [(rng.integers(2), rng.integers(99), rng.integers(99), rng.integers(99)) for _ in range(12)]

        def program(xp: Any, x: Any, y: Any, plan: Any = plan) -> Any:
            values = [x, y + 0 * x]
            for arity, op, i, j in plan:
                a, b = values[i % len(values)], values[j % len(values)]
                values.append(binary[op % len(binary)](a, b) if arity else unary[op % len(unary)](xp, a))
            return xp.sum(xp.tanh(values[-1])) + xp.sum(xp.tanh(values[-2]))

        x, y = rng.normal(size=(3, 4)), rng.normal(size=(3, 1))
        _, found = grads(lambda a, b: program(np, a, b), x, y)
        for i, g in enumerate(found):
            g = 0.0 if g is None else g
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of autograd, where nothing depends on an argument
                other = autograd.grad(lambda *xs: program(anp, *xs), i)(x, y)
            np.testing.assert_allclose(g, other, rtol=1e-9, atol=1e-12, err_msg=f"seed {seed}")


# --- Tensor -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [2.5, 3, True, np.float32(2), np.array(4.0), [[1, 2], [3, 4]], np.arange(3), []])
def test_data_is_always_an_array_with_numpys_dtype(data):
    t = Tensor(data)
    assert type(t.data) is np.ndarray
    assert t.dtype == t.data.dtype == np.asarray(data).dtype
    assert (t.shape, t.ndim, t.size) == (np.shape(data), np.ndim(data), np.size(data))
    assert t.data is t.data


def test_arrays_are_not_copied():
    for array in (np.arange(3.0), np.array(2.0), np.arange(6.0)[::2], np.asfortranarray(np.ones((2, 3)))):
        assert Tensor(array).data is array


def test_numbers_are_computed_with_as_numpy_scalars_until_somebody_looks():
    for number in (2.0, np.float64(2.0)):
        t = Tensor(number)
        assert type(t._value) is type((t * t)._value) is np.float64
        assert type(t.data) is type(t._value) is np.ndarray
        assert type((t * t)._value) is np.float64


def test_changes_of_a_number_in_place_are_seen():
    t = leaf(1.0)
    t.data[...] = 5.0
    assert (t * 2).item() == 10.0
    t.data -= 1.0
    assert (t * 2).item() == 8.0
    d = t.detach()
    d.data[...] = 7.0
    assert t.item() == 7.0


def test_data_can_be_replaced_and_keeps_shape_and_dtype():
    t = leaf([1.0, 2.0], np.float32)
    t.data = np.array([3.0, 4.0])
    assert t.dtype == np.float32
    t.data = [5, 6]
    np.testing.assert_array_equal(t.data, np.float32([5, 6]))
    with pytest.raises(ValueError, match=r"shape \(2,\) cannot become shape \(3,\)"):
        t.data = np.zeros(3)
    with pytest.raises(TypeError, match=r"int64 cannot become float64"):
        Tensor(np.arange(3)).data = np.zeros(3)
    np.testing.assert_array_equal(t.data, np.float32([5, 6]))


def test_grad_can_be_set_and_is_checked():
    t = leaf([1.0, 2.0], np.float32)
    t.grad = [1, 2]
    assert t.grad.dtype == np.float32
    t.sum().backward()
    np.testing.assert_array_equal(t.grad, [2.0, 3.0])
    t.grad = None
    with pytest.raises(ValueError, match=r"shape \(2,\) cannot have shape \(3,\)"):
        t.grad = np.zeros(3)
    with pytest.raises(ValueError, match="leaves"):
        (t * 2).grad = np.zeros(2)
    with pytest.raises(ValueError, match="leaves"):
        Tensor(1.0).grad = 1.0
    Tensor(1.0).grad = None


def test_requires_grad_can_be_set_on_leaves_only():
    t = Tensor([1.0])
    t.requires_grad = True
    (t * 2).sum().backward()
    assert t.grad == 2.0
    t.requires_grad = False
    assert t.grad is None
    assert not (t * 2).requires_grad
    t.requires_grad = True
    with pytest.raises(ValueError, match="detach"):
        (t * 2).requires_grad = False


OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow]
COMPARISONS = [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]


@pytest.mark.parametrize("op", OPERATORS + COMPARISONS, ids=lambda op: op.__name__)
@pytest.mark.parametrize(
    "other",
    [2, 2.0, True, np.float64(2), np.float32(2), np.int64(2), np.array(2.0), np.array([1.0, 2.0, 3.0]), [1, 2, 3],
     np.arange(1, 7).reshape(2, 3), pd.Series([1.0, 2.0, 3.0]), pd.Series([1, 2, 3], index=[7, 8, 9]),
     pd.DataFrame([[1.0, 2.0, 3.0]], columns=list("abc"))],
    ids=lambda other: type(other).__name__,
)  # fmt: skip
def test_operators_take_all_kinds_of_operands_on_either_side(op, other):
    x = np.array([1.0, 2.0, 4.0])
    plain = np.asarray(other) if not isinstance(other, (bool, int, float)) else other
    for t in (leaf(x), Tensor(x)):
        for out, expected in ((op(t, other), op(x, plain)), (op(other, t), op(plain, x))):
            assert type(out) is Tensor
            assert type(out.data) is np.ndarray
            assert out.dtype == expected.dtype
            np.testing.assert_array_equal(out.data, expected)
            assert out.requires_grad == (t.requires_grad and op in OPERATORS)
    if op in OPERATORS:
        for f, g in (
            (lambda a: op(a, other), lambda a: op(a, plain)),
            (lambda a: op(other, a), lambda a: op(plain, a)),
        ):
            weights = np.ones(np.shape(g(x)))
            np.testing.assert_allclose(grads(f, x, weights=weights)[1], central_differences(g, [x], weights), rtol=1e-6)


def test_matmul_takes_arrays_and_pandas():
    t, a = leaf(np.ones((3, 2))), np.arange(6.0).reshape(2, 3)
    frame = pd.DataFrame(a)
    for out, expected in ((a @ t, a @ np.ones((3, 2))), (t @ frame, np.ones((3, 2)) @ a), (t @ a, np.ones((3, 2)) @ a)):
        assert type(out.data) is np.ndarray
        np.testing.assert_array_equal(out.data, expected)
    with pytest.raises(TypeError, match=r"Tensor\(df\) @ t"):  # pandas asks for an array before it asks the Tensor
        frame @ t
    assert type((Tensor(frame) @ t).data) is np.ndarray


def test_a_tensor_never_holds_a_pandas_object():
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [3, 4]})
    tensors = [Tensor(frame), Tensor(frame["a"]), np.multiply(frame, leaf([1.0, 2.0])), leaf([1.0, 2.0]) - frame["a"],
               leaf([1.0, 2.0])[frame["a"] > 1], np.where(frame["a"] > 1, leaf([1.0, 2.0]), frame["b"]),
               leaf([1.0, 2.0]).clip(frame["a"], frame["b"])]  # fmt: skip
    assert all(type(t.data) is np.ndarray for t in tensors)
    np.testing.assert_array_equal(tensors[0].data, frame.to_numpy())


def test_numpy_scalars_on_the_left_and_right_of_numbers():
    w = leaf(3.0)
    for out in (np.float64(2) * w, w * np.float64(2), np.array(2.0) * w, 2 * w, np.float32(2) * w):
        assert type(out) is Tensor
        assert out.item() == 6.0
        assert type(out.data) is np.ndarray


def test_comparisons_give_boolean_tensors_and_equality_with_strangers_is_false():
    t = leaf([1.0, 2.0])
    assert (t > 1).dtype == bool
    assert not (t > 1).requires_grad
    assert ((t > 0) & (t < 2)).data.tolist() == [True, False]
    assert (~(t > 1)).data.tolist() == [True, False]
    assert (t == None) is False  # noqa: E711
    assert (t != "a") is True
    assert t in {t}
    assert hash(t) != hash(leaf([1.0, 2.0]))


def test_augmented_assignment_rebinds():
    a = leaf([1.0, 2.0])
    b = a
    a += 1
    a *= 2
    assert b is not a
    np.testing.assert_array_equal(b.data, [1.0, 2.0])
    np.testing.assert_array_equal(a.data, [4.0, 6.0])
    a.sum().backward()
    np.testing.assert_array_equal(b.grad, [2.0, 2.0])


def test_indexing_with_tensors():
    x = leaf([1.0, 2.0, 3.0])
    x[x > 1].sum().backward()
    np.testing.assert_array_equal(x.grad, [0.0, 1.0, 1.0])
    assert x[Tensor([0, 0])].data.tolist() == [1.0, 1.0]
    assert [10, 20, 30][Tensor(1)] == 20
    first, *rest = x
    assert first.item() == 1.0
    assert len(rest) == 2
    assert len(x) == 3


def test_a_view_that_is_not_contiguous_and_read_only_data_work():
    base = np.arange(24.0).reshape(4, 6)
    view = base[::2, ::-2]
    view.flags.writeable = False
    t = Tensor(view, requires_grad=True)
    (t * t).sum().backward()
    np.testing.assert_array_equal(t.grad, 2 * view)
    assert t.grad.flags.writeable


def test_float_int_and_formatting_of_numbers():
    assert f"{leaf(3.14159):.2f}" == "3.14"
    assert f"{leaf(2.0)}" == "2.0"
    assert repr(leaf(2.0)) == "Tensor(2., requires_grad=True)"
    assert repr(Tensor([1.0, 2.0], dtype=np.float32)) == "Tensor([1., 2.], dtype=float32)"
    assert str(Tensor([1, 2])) == f"{Tensor([1, 2])}" == "Tensor([1, 2])"
    assert float(Tensor(2.5)) == 2.5
    assert int(Tensor(2.5)) == 2
    assert math.exp(Tensor(0.0)) == 1.0
    assert leaf([[2.5]]).item() == 2.5
    assert bool(leaf(0.0)) is False
    assert np.asarray(Tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
    assert np.array(Tensor([1.0, 2.0]), dtype=np.float32).dtype == np.float32


def test_leaves_can_be_copied_and_pickled():
    t = leaf([1.0, 2.0])
    t.sum().backward()
    for other in (copy.deepcopy(t), pickle.loads(pickle.dumps(t))):
        assert other.requires_grad
        np.testing.assert_array_equal(other.grad, [1.0, 1.0])
        (other * t).sum().backward()
        np.testing.assert_array_equal(other.grad, [2.0, 3.0])
        np.testing.assert_array_equal(t.data, [1.0, 2.0])
        t.grad = [1.0, 1.0]
    with pytest.raises(TypeError, match="detach"):
        copy.deepcopy(t * 2)


def test_astype_converts_gradients_back():
    t = leaf([1.0, 2.0], np.float32)
    out = t.astype(np.float64)
    assert out.dtype == np.float64
    (out * np.float64(0.1)).sum().backward()
    assert t.grad.dtype == np.float32
    assert not t.astype(int).requires_grad


def test_functions_without_gradient_give_constants():
    t = leaf([[1.0, -2.0], [3.0, 4.0]])
    assert np.shape(t) == (2, 2)
    assert np.argmax(t).item() == 3
    assert np.sign(t).data.tolist() == [[1, -1], [1, 1]]
    assert not np.sign(t).requires_grad
    assert np.any(t < 0).item() is True
    assert (t > 0).any().item() is True
    assert (t > 0).all(axis=1).data.tolist() == [False, True]
    assert t.argmax(axis=1).data.tolist() == [0, 1]


def test_rules_are_never_bypassed():
    straight_through = defvjp(lambda x: np.sign(x), lambda g, out, x: g)
    x = leaf(0.5)
    straight_through(x).backward()
    assert x.grad == 1.0
    with pytest.raises(TypeError, match="by position"):
        straight_through(x=x)
    lower = defvjp(lambda x, y: x + y, lambda g, out, x, y: g)
    with pytest.raises(TypeError, match="no derivative rule for argument 1"):
        lower(1.0, leaf(1.0))
    default = defvjp(lambda x, y=2.0: x * y, None, lambda g, out, x, y=2.0: g * x)
    with pytest.raises(TypeError, match="no derivative rule for argument 0"):
        default(leaf(1.0))
    row = tinygrad_lite._table[np.add]
    before = row.vjps
    try:
        defvjp(np.add, before[0])
        for call in (lambda: 1 + leaf(1.0), lambda: np.add(1, leaf(1.0)), lambda: leaf(1.0) + leaf(1.0)):
            with pytest.raises(TypeError, match=r"np\.add has no derivative rule for argument 1"):
                call()
        y = leaf(1.0)
        (y + 1).backward()
        assert y.grad == 1.0
    finally:
        defvjp(np.add, *before)


def test_a_rule_can_be_replaced_through_the_function_that_defvjp_returned():
    before = tinygrad_lite._table[relu].vjps
    try:
        defvjp(relu, lambda g, out, x: g * 7)
        assert grads(relu, 1.0)[1][0] == grads(lambda t: t.relu(), 1.0)[1][0] == 7.0
    finally:
        defvjp(relu, *before)
    assert grads(relu, 1.0)[1][0] == 1.0


def test_a_rule_for_a_function_of_a_list_of_tensors_is_refused_and_one_of_each_works():
    try:
        defvjp(np.concatenate, lambda g, out, xs, axis=0: g)
        with pytest.raises(TypeError, match="takes no list of Tensors"):
            np.concatenate([leaf([1.0]), leaf([2.0])])
    finally:
        del tinygrad_lite._table[np.concatenate]
    join = defvjp(
        lambda a, b: np.concatenate([a, b]), lambda g, out, a, b: g[: len(a)], lambda g, out, a, b: g[len(a) :]
    )
    assert gradcheck(join, [1.0, 2.0], [3.0])


def test_a_rule_for_a_function_of_python_numbers():
    erf = defvjp(math.erf, lambda g, out, x: g * (2 / math.sqrt(math.pi)) * np.exp(-x * x))
    assert gradcheck(erf, 0.5)
    assert erf(0.5) == math.erf(0.5)


def test_freezing_a_leaf_between_forward_and_backward_loses_no_gradient():
    x = leaf(2.0)
    y = x * x
    x.requires_grad = False
    assert x.grad is None
    x.requires_grad = True
    y.backward()
    assert x.grad == 4.0


def test_momentum_does_not_share_memory_with_the_gradient():
    p = leaf([1.0])
    optimizer = SGD([p], lr=0.1, momentum=0.9)
    p.grad = [1.0]
    optimizer.step()
    p.grad[...] = 0.0
    optimizer.step()
    assert p.item() == pytest.approx(1 - 0.1 - 0.09)


def test_tensors_set_as_gradients_are_cast_and_copied():
    p, u = leaf([1.0, 2.0], np.float32), Tensor([1.0, 2.0])
    p.grad = u
    assert p.grad.dtype == np.float32
    p.grad[0] = 9.0
    assert u.data[0] == 1.0
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    (x + y).backward(np.ones(2), create_graph=True)
    assert x.grad is not y.grad
    assert not np.shares_memory(x.grad.data, y.grad.data)
    copied = copy.deepcopy(x)
    np.testing.assert_array_equal(copied.grad, [1.0, 1.0])


def test_create_graph_records_within_no_grad():
    x = leaf(3.0)
    y = x**3
    with no_grad():
        y.backward(create_graph=True)
    g, x.grad = x.grad, None
    g.backward()
    assert x.grad == 18.0


def test_threads_that_come_to_the_same_leaf_lose_nothing():
    x = leaf(np.ones(1000))
    losses = [(x * i).sum() for i in range(200)]

    def work(k: int) -> None:
        for loss in losses[k::8]:
            loss.backward()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(x.grad, np.full(1000, sum(range(200))))


@pytest.mark.parametrize("data", [np.uint8([0, 5]), np.array([True, False]), [1.0, -2.0], np.int64(3)], ids=repr)
def test_functions_of_integers_booleans_and_lists(data):
    expected = 1 / (1 + np.exp(-np.asarray(data, float)))
    np.testing.assert_allclose(sigmoid(data), expected, rtol=1e-3)
    np.testing.assert_allclose(sigmoid(Tensor(data)).data, expected, rtol=1e-3)
    np.testing.assert_array_equal(relu(data), np.maximum(data, 0))


def test_small_integers_as_base_and_booleans_as_exponent():
    t = leaf(2.0)
    (np.uint8([3]) ** t).sum().backward()
    assert t.grad == pytest.approx(9 * math.log(3), rel=1e-14)
    x = leaf([2.0, 2.0])
    (x ** np.array([True, False])).sum().backward()
    np.testing.assert_array_equal(x.grad, [1.0, 0.0])


def test_nan_is_its_own_maximum_and_beyond_the_limits_of_clip():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(grads(np.max, np.array([1.0, np.nan, np.nan]))[1][0], [0.0, 0.5, 0.5])
    np.testing.assert_array_equal(grads(lambda t: t.clip(0, 2), np.array([np.nan, 1.0]))[1][0], [0.0, 1.0])


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize(("shape", "axis"), [((), 3), ((2, 3), 5), ((2, 3), -3), ((2, 3), (0, 0))])
def test_axes_that_do_not_exist_are_refused_with_and_without_gradients(name, shape, axis):
    for t in (Tensor(np.ones(shape)), leaf(np.ones(shape))):
        with pytest.raises(ValueError, match="axis"):
            getattr(t, name)(axis=axis)


def test_large_float16_means_have_a_gradient():
    t = leaf(np.ones(70_000), np.float16)
    t.mean().backward()
    assert t.grad[0] == np.float16(1 / 70_000)
    assert leaf([1.0, 3.0], np.float32).var(ddof=np.int64(1)).dtype == np.float32


def test_users_rule_for_a_plain_function_and_a_ufunc_and_a_replacement():
    softplus = defvjp(lambda x: np.logaddexp(x, 0), lambda g, out, x: g / (1 + np.exp(-x)))
    x = np.linspace(-3, 3, 7)
    assert gradcheck(softplus, x)
    assert type(softplus(x)) is np.ndarray
    assert defvjp(np.arcsinh, lambda g, out, x: g / np.sqrt(x * x + 1)) is np.arcsinh
    try:
        assert gradcheck(np.arcsinh, x)
        defvjp(np.arcsinh, lambda g, out, x: g * 7)
        np.testing.assert_array_equal(grads(np.arcsinh, x)[1][0], np.full(7, 7.0))
    finally:
        del tinygrad_lite._table[np.arcsinh]


# --- SGD and gradcheck ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(
    lr=st.floats(0.001, 0.5),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    weight_decay=st.sampled_from([0.0, 0.01, 0.3]),
    nesterov=st.booleans(),
    seed=SEEDS,
)
def test_sgd_follows_the_published_rule_step_by_step(dtype, lr, momentum, weight_decay, nesterov, seed):
    nesterov = nesterov and momentum > 0
    rng = np.random.default_rng(seed)
    params = [Tensor(rng.normal(size=shape).astype(dtype), requires_grad=True) for shape in ((), (3,), (2, 2))]
    thetas = [p.data.copy() for p in params]
    buffers: list[Any] = [None] * 3
    optimizer = SGD(params, lr, momentum, weight_decay, nesterov)
    for _ in range(5):
        for i, (p, theta) in enumerate(zip(params, thetas, strict=True)):
            gradient = rng.normal(size=p.shape).astype(dtype)
            p.grad = gradient
            # https://pytorch.org/docs/stable/generated/torch.optim.SGD.html, with dampening 0
            gradient = gradient + dtype(weight_decay) * theta
            if momentum:
                buffers[i] = gradient if buffers[i] is None else dtype(momentum) * buffers[i] + gradient
                gradient = gradient + dtype(momentum) * buffers[i] if nesterov else buffers[i]
            thetas[i] = theta - dtype(lr) * gradient
        optimizer.step()
        for p, theta in zip(params, thetas, strict=True):
            assert p.dtype == dtype
            np.testing.assert_allclose(p.data, theta, rtol=2e-6 if dtype is np.float32 else 1e-14, atol=1e-12)


def test_sgd_numbers_worked_by_hand():
    p = leaf(1.0)
    optimizer = SGD([p], lr=0.1, momentum=0.9, weight_decay=0.5)
    values = []
    for _ in range(3):
        p.grad = 2.0
        optimizer.step()
        values.append(p.item())
    # g: 2.5, 2.375, 2.141875...; v: 2.5, 4.625, 6.30...; p: 0.75, 0.2875, -0.343125
    assert values == pytest.approx([0.75, 0.2875, -0.343125], rel=1e-12)


def test_sgd_passes_over_parameters_without_gradient_and_takes_a_numpy_rate():
    p, q = leaf([1.0], np.float32), leaf([1.0])
    optimizer = SGD((t for t in (p, q)), lr=np.float64(0.5))
    p.grad = [1.0]
    optimizer.step()
    assert p.dtype == np.float32
    assert (p.item(), q.item()) == (0.5, 1.0)


def test_gradcheck_accepts_right_rules_and_names_what_is_wrong():
    assert gradcheck(lambda x, y, n: (x @ y) ** n, np.ones((2, 3)), [1.0, 2.0, 3.0], 2) is True
    assert gradcheck(lambda x: x * 2, np.float32(1.5)) is True
    assert gradcheck(lambda x: np.sign(x) * 1.0, 3.0) is True
    assert gradcheck(lambda x, y: x, 3.0, 4.0) is True
    with no_grad():
        assert gradcheck(lambda x: x**2, 3.0) is True
    wrong = defvjp(lambda x: x**2, lambda g, out, x: g * np.array([2.0, 3.0, 2.0]) * x)
    pattern = r"argument 1, entry \(1,\): backward ([\d.]+), central differences ([\d.]+)"
    with pytest.raises(AssertionError, match=pattern) as caught:
        gradcheck(lambda a, b: wrong(b) + a, 1.0, np.array([1.0, 2.0, 3.0]))
    found, expected = map(float, re.fullmatch(pattern, str(caught.value)).groups())
    assert found / expected == pytest.approx(3 / 2)


# --- Bad input to the engine ------------------------------------------------------------------------------------------

BAD_RULES = [defvjp(lambda x: x * 2, lambda g, out, x: np.ones(3)), defvjp(lambda x: x * 2, lambda g, out, x: None)]
ERRORS: list[tuple[str, Any, type[Exception], str]] = [
    ("broadcast", lambda: leaf([1.0, 2.0]) * np.ones(3), ValueError, r"np\.multiply of shapes \(2,\) and \(3,"),
    ("function", lambda: np.add(leaf([1.0, 2.0]), np.ones(3)), ValueError, r"np\.add of shapes \(2,\) and \(3,"),
    ("matmul", lambda: leaf(np.ones((2, 3))) @ np.ones((2, 3)), ValueError, r"np\.matmul of shapes \(2, 3\) and"),
    ("matmul of a number", lambda: leaf(2.0) @ leaf(2.0), ValueError, r"np\.matmul of shapes \(\) and \(\)"),
    ("reshape", lambda: leaf(np.ones(6)).reshape(4, 2), ValueError, r"np\.reshape of shapes \(6,\)"),
    ("axis", lambda: leaf(np.ones(6)).sum(axis=3), ValueError, r"np\.sum of shapes \(6,\).*axis 3"),
    ("integers", lambda: Tensor([1, 2], requires_grad=True), TypeError, r"int64 data cannot require.*dtype=float"),
    ("booleans", lambda: Tensor(True, requires_grad=True), TypeError, r"bool data cannot require.*dtype=float"),
    ("strings", lambda: Tensor(["a"], requires_grad=True), TypeError, r"<U1: convert it first"),
    ("objects", lambda: Tensor([object()], requires_grad=True), TypeError, r"dtype object: convert it first"),
    ("text column", lambda: Tensor(pd.Series(["a", "b"])), TypeError, r"convert it first"),
    ("mixed frame", lambda: leaf(1.0) * pd.DataFrame({"a": [1], "b": ["x"]}), TypeError, r"convert it first"),
    ("complex", lambda: Tensor(1j), TypeError, r"complex128: take its real part"),
    ("complex operand", lambda: leaf(1.0) * 1j, TypeError, r"complex128: take its real part"),
    ("complex array", lambda: np.array([1j]) * leaf(1.0), TypeError, r"complex128: take its real part"),
    ("masked array", lambda: Tensor(np.ma.array([1.0], mask=[True])), TypeError, r"\.filled"),
    ("ragged", lambda: Tensor([[1.0], [1.0, 2.0]]), ValueError, r"inhomogeneous"),
    ("Tensor of a Tensor", lambda: Tensor(leaf(1.0)), TypeError, r"\.detach\(\)"),
    ("Tensor of Tensors", lambda: Tensor([leaf(1.0)]), TypeError, r"\.detach\(\)"),
    ("backward of several", lambda: leaf([1.0, 2.0]).backward(), ValueError, r"\(2,\) needs a gradient.*\.sum\(\)"),
    ("gradient shape", lambda: leaf([1.0, 2.0]).backward(np.ones(3)), ValueError, r"shape \(2,\) got a.*\(3,\)"),
    ("backward of a constant", lambda: Tensor(1.0).backward(), ValueError, r"requires_grad=True"),
    ("result of objects", lambda: np.where([True], leaf([1.0]), None), TypeError, r"np\.where.*dtype object"),
    ("conversion to text", lambda: leaf([1.0]).astype(str), TypeError, r"convert.*<U32"),
    ("result of two", lambda: defvjp(lambda x: (x, x), lambda g, out, x: g)(leaf(1.0)), TypeError, r"gave a tuple"),
    ("rule of a shape", lambda: BAD_RULES[0](leaf([1.0, 2])).sum().backward(), ValueError, r"returned shape \(3,"),
    ("rule of no array", lambda: BAD_RULES[1](leaf([1.0, 2.0])).sum().backward(), TypeError, r"returned a NoneType"),
    ("rule that is none", lambda: defvjp(lambda x: x, 3.0), TypeError, r"function or None, not 3\.0"),
    ("too few arguments", lambda: np.clip(leaf(1.0)), TypeError, r"np\.clip.*'a_min'|np\.clip.*missing|clip\(\)"),
    ("writing", lambda: operator.setitem(leaf([1.0]), 0, 1), TypeError, r"cannot be written to.*np\.where"),
    ("np.asarray", lambda: np.asarray(leaf([1.0])), TypeError, r"NumPy array.*\.detach\(\)"),
    ("np.array of a list", lambda: np.array([leaf(1.0), leaf(2.0)]), TypeError, r"NumPy array.*\.detach\(\)"),
    ("float", lambda: float(leaf(1.0)), TypeError, r"Python number.*np\. functions.*\.item\(\)"),
    ("int", lambda: int(leaf(1.0)), TypeError, r"Python number.*np\. functions.*\.item\(\)"),
    ("math.exp", lambda: math.exp(leaf(1.0)), TypeError, r"Python number.*np\. functions.*\.item\(\)"),
    ("np.float64", lambda: np.float64(leaf(1.0)), TypeError, r"np\. functions.*\.item\(\)"),
    ("array[:] = t", lambda: operator.setitem(np.zeros(2), slice(None), leaf([1.0, 2])), TypeError, r"\.item\(\)"),
    ("array += t", lambda: operator.iadd(np.zeros(2), leaf(1.0)), TypeError, r"np\.add with out=.*y = np\.add"),
    ("out=", lambda: np.exp(leaf(1.0), out=np.zeros(())), TypeError, r"np\.exp with out="),
    ("where=", lambda: np.exp(leaf(1.0), where=True), TypeError, r"np\.exp with where="),
    ("reduce", lambda: np.add.reduce(leaf([1.0])), TypeError, r"np\.add\.reduce"),
    ("add.at", lambda: np.add.at(np.zeros(2), [0], leaf([1.0])), TypeError, r"np\.add\.at"),
    ("no rule", lambda: np.fft.fft(leaf([1.0])), TypeError, r"np\.fft\.fft has no derivative rule.*defvjp"),
    ("no rule for a ufunc", lambda: np.spacing(leaf([1.0])), TypeError, r"np\.spacing has no derivative rule.*defvjp"),
    ("no function", lambda: defvjp(3, lambda g: g), TypeError, r"takes a function.*not 3"),  # type: ignore[arg-type]
    ("rule without rules", lambda: defvjp(lambda x: x), TypeError, r"a rule for each.* and 0"),
    ("nothing", lambda: Tensor(None), TypeError, r"dtype object"),
    ("gradcheck of integers", lambda: gradcheck(lambda x: x * 2, 2), TypeError, r"no float argument"),
    ("no rule for an option", lambda: np.sum(leaf([1.0]), dtype=float), TypeError, r"np\.sum.*'dtype'"),
    ("no rule for an argument", lambda: np.where(leaf([1.0]), 1.0, 2.0), TypeError, r"np\.where.*argument 0"),
    ("by keyword", lambda: np.clip(Tensor(1.0), a_min=leaf(0.0), a_max=1.0), TypeError, r"by position"),
    ("multiplied by text", lambda: leaf(1.0) + "a", TypeError, r"unsupported operand"),
    ("length of a number", lambda: len(leaf(1.0)), TypeError, r"0-d"),
    ("iteration over a number", lambda: list(leaf(1.0)), TypeError, r"0-d"),
    ("index", lambda: [1, 2][leaf(1.0)], TypeError, r"index must be an integer"),
    ("truth of several", lambda: bool(leaf([1.0, 2.0])), ValueError, r"ambiguous"),
    ("item of several", lambda: leaf([1.0, 2.0]).item(), ValueError, r"size 1"),
    ("out of range", lambda: leaf([1.0, 2.0])[2], IndexError, r"index 2 is out of bounds"),
    ("SGD over nothing", lambda: SGD([], lr=0.1), ValueError, r"no parameters"),
    ("SGD over an array", lambda: SGD([np.ones(2)], lr=0.1), TypeError, r"parameter 0 is of type ndarray"),
    ("SGD over one Tensor", lambda: SGD(leaf([1.0]), lr=0.1), TypeError, r"SGD\(\[t\]"),
    ("SGD over a constant", lambda: SGD([leaf(1.0), Tensor(1.0)], lr=0.1), ValueError, r"parameter 1.*requires_grad"),
    ("SGD over a result", lambda: SGD([leaf(1.0) * 2], lr=0.1), ValueError, r"parameter 0"),
    ("SGD twice", lambda: SGD([leaf(1.0)] * 2, lr=0.1), ValueError, r"twice"),
    ("negative rate", lambda: SGD([leaf(1.0)], lr=-0.1), ValueError, r"lr=-0\.1"),
    ("nan rate", lambda: SGD([leaf(1.0)], lr=math.nan), ValueError, r"lr=nan"),
    ("no rate", lambda: SGD([leaf(1.0)], lr=None), ValueError, r"lr=None"),  # type: ignore[arg-type]
    ("negative momentum", lambda: SGD([leaf(1.0)], lr=0.1, momentum=-1), ValueError, r"momentum=-1"),
    ("negative decay", lambda: SGD([leaf(1.0)], lr=0.1, weight_decay=-1), ValueError, r"weight_decay=-1"),
    ("nesterov alone", lambda: SGD([leaf(1.0)], lr=0.1, nesterov=True), ValueError, r"momentum"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), [e[1:] for e in ERRORS], ids=[e[0] for e in ERRORS])
def test_bad_input_gives_one_clear_sentence(call, kind, message):
    with pytest.raises(kind, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_array_element_assignment_of_a_tensor_is_refused_and_says_why():
    array = np.zeros(2)
    with pytest.raises(ValueError, match="setting an array element") as caught:  # NumPy's words; ours are their cause
        array[0] = leaf(1.0)
    assert ".item()" in str(caught.value.__cause__)
    array[0] = Tensor(3.0)
    assert array.tolist() == [3.0, 0.0]


def test_module_examples():
    results = doctest.testmod(tinygrad_lite)
    assert results.attempted > 20
    assert results.failed == 0


def test_readme_examples_print_what_they_say(capsys):
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (HERE / "README.md").read_text(), re.DOTALL):
        exec(block, names)
        assert capsys.readouterr().out.splitlines() == re.findall(r"^print.*  # (.*)$", block, re.MULTILINE)


def test_readme_names_every_function_of_the_table():
    words = set(re.findall(r"\w+", (HERE / "README.md").read_text()))
    operators = {"add", "subtract", "multiply", "divide", "power", "matmul", "negative", "positive", "absolute"}
    operators |= {"equal", "not_equal", "less", "less_equal", "greater", "greater_equal"}
    operators |= {"bitwise_and", "bitwise_or", "bitwise_xor", "invert", "amax", "amin"}
    rows = {row.function for row in tinygrad_lite._table.values()}
    names = {f.__name__ for f in rows if isinstance(f, np.ufunc) or hasattr(f, "_implementation")}
    assert names - operators <= words


# --- train_linear.py --------------------------------------------------------------------------------------------------


def run_script(name: str, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a user does, in a process of its own."""
    command = [sys.executable, str(HERE / name), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | env)


def linear(capsys: Any, *args: object) -> Any:
    """The JSON report of train_linear in this process."""
    assert train_linear.main([*map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_linear_script_prints_a_line_per_epoch_and_the_line_it_found():
    done = run_script("train_linear.py", "--rows", 500, "--epochs", 20)
    assert (done.returncode, done.stderr) == (0, "")
    *epochs, last = done.stdout.splitlines()
    assert last == "y = 1.000000 x - 1.000000"
    assert len(epochs) == 20
    pattern = r"epoch +(\d+)  loss (\S+)  w (\S+)  b (\S+)  ([\d,]+) steps/s"
    numbers = [re.fullmatch(pattern, line).groups() for line in epochs]
    assert [int(n[0]) for n in numbers] == list(range(1, 21))
    assert float(numbers[-1][1]) < float(numbers[0][1])
    assert float(numbers[-1][2]) == pytest.approx(1, abs=1e-6)
    assert float(numbers[-1][3]) == pytest.approx(-1 / 500, abs=1e-6)


@pytest.mark.parametrize("size", [1, 64])
def test_linear_model_finds_the_line_on_numbers_and_on_arrays(capsys, size):
    report = linear(capsys, "--rows", 2000, "--batch-size", size, "--epochs", 20 if size == 1 else 60, "--lr", 0.5)
    assert report["slope"] == pytest.approx(1, abs=1e-6)
    assert report["intercept"] == pytest.approx(-1, abs=1e-3)
    assert report["loss"] < 1e-12
    assert report["steps"] == (20 * 2000 if size == 1 else 60 * 32)
    assert report["rows"] == 2000
    assert report["seconds"] > 0


def test_linear_runs_the_same_model_on_numbers_and_arrays(monkeypatch, capsys):
    shapes: dict[int, set[tuple[int, ...]]] = {1: set(), 64: set()}
    model = train_linear.squared_error
    for size, seen in shapes.items():

        def watched(w: Any, b: Any, x: Any, y: Any, seen: Any = seen) -> Any:
            seen.add((w.shape, np.shape(x)))
            return model(w, b, x, y)

        monkeypatch.setattr(train_linear, "squared_error", watched)
        linear(capsys, "--rows", 100, "--epochs", 1, "--batch-size", size)
    assert shapes == {1: {((), ()), ((), (100,))}, 64: {((), (64,)), ((), (36,)), ((), (100,))}}


def test_linear_steps_are_those_of_gradient_descent_by_hand():
    x, y = np.array([0.5, -1.0, 2.0]), np.array([1.0, 0.0, -1.0])
    *_, (_, loss, w, b, steps, _) = train_linear.train(x, y, 3, 1, 0.1, seed=7)
    rng, w_hand, b_hand = np.random.default_rng(7), 0.0, 0.0
    for epoch in range(3):
        for i in rng.permutation(3):
            error = w_hand * x[i] + b_hand - y[i]
            rate = 0.1 * (1 - epoch / 3)
            w_hand, b_hand = w_hand - rate * 2 * error * x[i], b_hand - rate * 2 * error
    assert (w, b, steps) == (pytest.approx(w_hand, rel=1e-12), pytest.approx(b_hand, rel=1e-12), 9)
    assert loss == pytest.approx(np.mean((w_hand * x + b_hand - y) ** 2), rel=1e-12)


def test_linear_seed_decides_the_order(capsys):
    reports = [linear(capsys, "--rows", 50, "--epochs", 1, "--seed", seed)["slope"] for seed in (1, 1, 2)]
    assert reports[0] == reports[1] != reports[2]


def test_linear_data_round_trip_and_units_of_the_file(capsys, tmp_path):
    file = tmp_path / "line.csv"
    made = linear(capsys, "--rows", 300, "--epochs", 20, "--save-data", file)
    table = pd.read_csv(file)
    assert list(table) == ["x", "y"]
    np.testing.assert_array_equal(table["x"], np.arange(300))
    np.testing.assert_array_equal(table["y"], np.arange(300) - 1)
    read = linear(capsys, "--data", file, "--epochs", 20)
    assert read["slope"] == pytest.approx(made["slope"], abs=1e-5)
    assert read["intercept"] == pytest.approx(-1, abs=1e-2)
    rng = np.random.default_rng(0)
    x = rng.uniform(-400, 900, 1000)
    noisy = tmp_path / "noisy.csv"
    pd.DataFrame({"y": 2e5 - 30 * x + rng.normal(0, 2000, 1000), "x": x, "note": "a, b"}).to_csv(noisy, index=False)
    slope, intercept = np.polyfit(x, pd.read_csv(noisy)["y"], 1)
    report = linear(capsys, "--data", noisy, "--epochs", 30)
    assert report["slope"] == pytest.approx(slope, rel=0.02)
    assert report["intercept"] == pytest.approx(intercept, rel=0.002)


def test_linear_script_trains_on_a_file_in_a_process_of_its_own(tmp_path):
    file = tmp_path / "line.csv"
    pd.DataFrame({"x": np.arange(50), "y": 3.0 * np.arange(50) + 7}).to_csv(file, index=False)
    done = run_script("train_linear.py", "--data", file, "--epochs", 200)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "y = 3.000000 x + 7.000000"


def test_linear_reports_the_start_after_no_epochs(capsys):
    report = linear(capsys, "--rows", 10, "--epochs", 0)
    assert (report["slope"], report["intercept"], report["steps"]) == (0, 0, 0)


def test_linear_interrupted_gives_the_report_so_far(monkeypatch, capsys):
    batches, calls = train_linear.batches, []

    def interrupted(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return batches(*args)

    monkeypatch.setattr(train_linear, "batches", interrupted)
    assert train_linear.main(["--rows", "200"]) == 130
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["epoch", "1"], ["epoch", "2"], ["epoch", "3"]]
    assert lines[3] == "interrupted in epoch 3: this is the line so far"
    assert lines[4].startswith("y = ")


def test_linear_interrupted_within_the_first_epoch_keeps_the_steps_taken(monkeypatch, capsys):
    def interrupted(x: Any, y: Any, *_: Any) -> Any:
        yield x[7], y[7]
        raise KeyboardInterrupt

    monkeypatch.setattr(train_linear, "batches", interrupted)
    assert train_linear.main(["--rows", "10", "--json", "--lr", "0.5"]) == 130
    report = json.loads(capsys.readouterr().out)
    assert (report["steps"], report["epochs"], report["interrupted"]) == (1, 1, True)
    assert report["slope"] == pytest.approx(0.5 * 2 * 0.7 * 0.6)  # x = 0.7, y = 0.6


def test_linear_ctrl_c_from_the_keyboard():
    command = [sys.executable, str(HERE / "train_linear.py"), "--rows", "3000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("epoch   1")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == ""
    assert out.splitlines()[-1].startswith("y = ")


def test_linear_reader_that_leaves_early_sees_no_traceback():
    command = [sys.executable, str(HERE / "train_linear.py"), "--rows", "300"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("epoch   1")
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""


BAD_OPTIONS = {
    "--rows 0": "--rows.*0",
    "--rows 1.5": "--rows.*1.5",
    "--rows 1": "--rows.*from 5.*'1'",
    "--rows 9999999999999999999999": "--rows.*1000000000",
    "--batch-size 0": "--batch-size.*0",
    "--epochs -1": "--epochs.*-1",
    "--lr nan": "--lr.*nan",
    "--lr inf": "--lr.*inf",
    "--lr 0": "--lr.*0",
    "--lr x": "--lr.*x",
    "--seed -1": "--seed.*-1",
    "--frobnicate": "--frobnicate",
    "--data": "--data.*expected",
    "--rows 10 --data x.csv": "--data.*--rows",
    "--rows 100 --lr 1e9": "overflowed in epoch 1.*--lr",
    "--rows 100 --lr 1e300 --batch-size 10": "overflowed in epoch 1.*--lr",
}


def fails_with_one_sentence(capsys: Any, main: Any, argv: list[str], message: str) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1, err
    assert re.search(message, err), err
    assert "nan" not in out
    assert "Traceback" not in err


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_linear_bad_options(capsys, options):
    fails_with_one_sentence(capsys, train_linear.main, options.split(), BAD_OPTIONS[options])


GOOD_ROWS = "1,2\n2,3\n3,4\n4,5\n"
BAD_LINES = {
    "": "is empty",
    "\n\n": "is empty",
    "x,y\n": "holds 0 of the at least 5",
    "x,y\n" + GOOD_ROWS: "holds 4 of the at least 5",
    "x,z\n" + GOOD_ROWS + "5,6\n": "column 'y'.*x.*z",
    "x,x,y\n" + GOOD_ROWS + "5,6\n": "column 'x'",
    "x,y\n" + GOOD_ROWS + "five,6\n": r"row 5 \(line 6\).*'x'.*'five'",
    "x,y\n" + GOOD_ROWS + "\n5,\n": r"row 5 \(line 7\).*'y'.*''",
    "x,y\n1,2\n2\n3,4\n4,5\n5,6\n": r"row 2 \(line 3\).*'y'",
    "x,y\n" + GOOD_ROWS + "nan,6\n": r"row 5 \(line 6\).*'x'.*'nan'",
    "x,y\n" + GOOD_ROWS + "5,inf\n": r"row 5 \(line 6\).*'y'.*'inf'",
    "x,y\n" + "3,1\n" * 6: "'x' is 3 in every row",
    '{"x": [1, 2], "y": [1, 2]}': "is not a CSV file",
    'x,y\n"1,2\n': "not a CSV|must be a CSV",
    "\x00\x01\x02PNG": "CSV|column",
}


@pytest.mark.parametrize("text", BAD_LINES, ids=repr)
def test_linear_bad_files(capsys, tmp_path, text):
    file = tmp_path / "bad.csv"
    file.write_text(text)
    fails_with_one_sentence(capsys, train_linear.main, ["--data", str(file)], BAD_LINES[text])


def test_linear_files_that_cannot_be_read_or_written(capsys, tmp_path):
    file = tmp_path / "latin.csv"
    file.write_bytes(b"x,y\n\xff\xfe,1\n")
    for argv, message in (
        (["--data", str(tmp_path / "none.csv")], "none.csv"),
        (["--data", str(tmp_path)], "irectory"),
        (["--data", str(file)], "UTF-8"),
        (["--rows", "10", "--save-data", str(tmp_path)], "cannot be written"),
        (["--rows", "10", "--save-data", str(tmp_path / "none" / "x.csv")], "cannot be written"),
    ):
        fails_with_one_sentence(capsys, train_linear.main, argv, message)


def test_linear_that_outgrows_the_memory_says_so(capsys, monkeypatch):
    def refuses(*args: Any, **options: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(np, "arange", refuses)
    fails_with_one_sentence(capsys, train_linear.main, ["--rows", "1000000"], "memory.*fewer rows")


def test_linear_takes_a_constant_y_and_a_file_with_quirks(capsys, tmp_path):
    file = tmp_path / "quirks.csv"
    file.write_bytes(b"\xef\xbb\xbf x , y,\r\n" + b"".join(b" %d, 7,\r\n" % i for i in range(1, 30)))
    report = linear(capsys, "--data", file, "--epochs", 300)
    assert report["slope"] == pytest.approx(0, abs=1e-6)
    assert report["intercept"] == pytest.approx(7, abs=1e-5)


# --- train_gender.py --------------------------------------------------------------------------------------------------
# Kaggle is a server of our own on the port that kagglehub knows as its test environment, or nobody at all: no test
# reaches farther than this machine. The real file takes part where it is at hand.

REAL_CSV = HERE.parent / "shared" / "data" / "gender.csv"  # absent on most machines
COLUMNS = ["Gender", "Age", "Height (cm)", "Income (USD)"]


@pytest.fixture
def kaggle_is_this_machine(tmp_path, monkeypatch):
    """kagglehub talks to localhost:7777, knows no credentials, and keeps its cache in a temporary folder."""
    for name in [
        name for name in os.environ if name.startswith(("KAGGLE", "COLAB", "TBE_")) or "PROXY" in name.upper()
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONUSERBASE", site.getuserbase())  # stays where it was when HOME moves
    for name in ("HOME", "USERPROFILE", "KAGGLE_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")


@pytest.fixture
def gender(capsys, kaggle_is_this_machine):
    """Runs train_gender.main in process: exit status, standard output, standard error."""

    def run(*argv):
        status = train_gender.main([str(argument) for argument in argv])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def no_kagglehub(tmp_path, monkeypatch, kaggle_is_this_machine):
    """kagglehub cannot be imported."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "kagglehub.py").write_text("raise ImportError('no\\nwheel')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))


@pytest.fixture(params=["sample", "real"] if REAL_CSV.exists() else ["sample"])
def gender_csv(request, tmp_path):
    """A file in the form of the dataset's: generated rows, and the real one where it is at hand."""
    if request.param == "real":
        return REAL_CSV
    path = tmp_path / "sample.csv"
    path.write_text(train_gender.sample_csv(), encoding="utf-8")
    return path


def read_people(path):
    return train_gender.load_table("auto", str(path))[1]


def strict_json(text):
    """What JSON text says; nan and infinity, which are not JSON, fail."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def assert_one_sentence(result, *words):
    """Exit status 2, nothing but one line on standard error, and these words in it."""
    status, out, err = result
    assert status == 2
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for word in words:
        assert word in err
    return out


# The table


def test_sample_has_the_columns_and_quirks_of_the_real_file():
    header, *lines = train_gender.sample_csv().splitlines()
    assert header == (
        " Gender, Age, Height (cm), Weight (kg), Occupation, Education Level, Marital Status, Income (USD),"
        " Favorite Color,"
    )
    assert len(lines) == 131
    assert all(line.endswith(",") and line.count(",") == 9 for line in lines)
    assert {line.split(",")[0] for line in lines} == {"male", " male", "female", " female"}
    incomes = sorted(int(line.split(",")[7]) for line in lines)
    assert incomes[-1] > 4 * incomes[len(lines) // 2] > 0
    if REAL_CSV.exists():
        real_header, *real_lines = REAL_CSV.read_text().splitlines()
        assert header == real_header
        assert not {line.strip() for line in lines} & {line.strip() for line in real_lines}


def test_table_holds_the_numbers_that_pandas_reads(gender_csv):
    expected = pd.read_csv(gender_csv, skipinitialspace=True)[COLUMNS]
    expected["Gender"] = (expected["Gender"] == "male").astype(float)
    pd.testing.assert_frame_equal(read_people(gender_csv), expected.astype(float))


@pytest.mark.parametrize(
    "text",
    [
        "Gender,Age,Height (cm),Income (USD)\n" + "male,30,180,1e3\n" * 2 + "FEMALE,31,170.5,2000\n" * 3,
        "\ufeffGender, Age ,Height (cm),Income (USD)\r\n" + "male,30,180,1000\r\n" * 2 + "female,31,170.5,2000\r\n" * 3,
        "Income (USD),Note,Height (cm),Age,Gender\n" + '1000,"a, b",180,30,male\n' * 2 + "2000,,170.5,31,female,\n" * 3,
        'id,Gender,Age,Height (cm),Income (USD),\n1, "male",30,180, "1000",\n\n \n2,Male ,30, 180,+1000\n'
        + '3,female,31,170.5,2000\n4,female,31,170.5,2000\n5,"female",31.0,170.5,2000,,,\n',
    ],
    ids=["plain", "byte order mark and CRLF", "other order and quotes", "blank lines and commas"],
)
def test_table_is_read_whatever_its_layout(text, tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode())
    expected = [[1, 30, 180, 1000]] * 2 + [[0, 31, 170.5, 2000]] * 3
    assert read_people(path).to_numpy().tolist() == expected


def csv_with(line, *, before="", rows=5):
    """A good table whose third data row is ``line``."""
    good = [f"male,{20 + i},{170 + i},{1000 + i}\n" for i in range(rows)]
    return "Gender,Age,Height (cm),Income (USD)\n" + good[0] + before + good[1] + line + "\n" + "".join(good[2:])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (csv_with("male,old,180,5"), ["row 3 (line 4)", "Age", "'old'", "finite number"]),
        (csv_with("male,30,180,5,6"), ["line 4", "more values", "quotes"]),
        (csv_with("male,30,180,5,6,").replace("(USD)", "(USD),,"), ["line 4", "more values", "quotes"]),
        ("Gender,Age,Height (cm),Income (USD)\n" + "male,30,180\n" * 5, ["row 1 (line 2)", "Income (USD)", "''"]),
        (csv_with("male,30,180,"), ["row 3 (line 4)", "Income (USD)", "''"]),
        (csv_with("male,30, ,5"), ["row 3 (line 4)", "Height (cm)", "''"]),
        (csv_with("male,30"), ["row 3 (line 4)", "Height (cm)", "''"]),
        (csv_with("male,30,NaN,5"), ["row 3 (line 4)", "Height (cm)", "'NaN'"]),
        (csv_with("male,30,180,inf"), ["row 3 (line 4)", "Income (USD)", "'inf'"]),
        (csv_with("male,30,180,1e999"), ["row 3 (line 4)", "Income (USD)", "'1e999'"]),
        (csv_with('male,30,180,"75,000"'), ["row 3 (line 4)", "Income (USD)", "'75,000'"]),
        (csv_with("male,30,180,0x10"), ["row 3 (line 4)", "Income (USD)", "'0x10'"]),
        (csv_with("diverse,30,180,5"), ["row 3 (line 4)", "Gender", "'diverse'", "male or female"]),
        (csv_with(",30,180,5"), ["row 3 (line 4)", "Gender", "''"]),
        (csv_with("1,30,180,5"), ["row 3 (line 4)", "Gender", "'1'"]),
        (csv_with("male,old,180,5", before="\n,,,\n"), ["row 3 (line 6)", "Age", "'old'"]),
        (
            csv_with("male,old,180,5", before='male,30,180,5,"a\nb"\n').replace("(USD)", "(USD),Note"),
            ["row 4 (line 6)", "Age", "'old'"],
        ),
        (csv_with("male," + "x" * 10_000 + ",180,5"), ["row 3 (line 4)", "Age", "'xxx"]),
        ("", ["empty"]),
        ("\n \n,,\n", ["empty"]),
        ("Gender,Age,Height (cm),Income (USD)\n", ["holds 0 of", "5 rows"]),
        (csv_with("male,30,180,5", rows=3), ["holds 4 of", "5 rows"]),
        (csv_with("male,30,180,5").replace("Age", "Years"), ["'Age'", "Gender,Years,Height (cm),"]),
        (csv_with("male,30,180,5").replace("Height (cm)", "Age"), ["'Age'", "Gender,Age,Age,"]),
        (csv_with("male,30,180,5").replace(",", ";"), ["'Gender'", "Gender;Age;"]),
        ("<!doctype html>\n<html>\n" * 9, ["'Gender'", "<!doctype html>"]),
        ("x" * 100_000 + "\n", ["'Gender'", "xxx"]),
        (csv_with('male,30,180,"5'), ["CSV", "unexpected end of data"]),
        (csv_with("male,30,180," + "5" * 200_000), ["CSV", "field"]),
        (csv_with("female,30,180,5").replace("1000", "1e308").replace("1001", "-1e308"), ["'Income (USD)'", "e+308"]),
    ],
)
def test_bad_table_is_refused_in_one_sentence_that_says_where(text, words, tmp_path, gender):
    path = tmp_path / "bad.csv"
    path.write_text(text, encoding="utf-8")
    result = gender("--csv", path, "--test-fraction", "0.2")
    assert assert_one_sentence(result, *words) == ""
    assert len(result[2]) < 600


def test_file_that_cannot_be_read_as_text_is_refused_in_one_sentence(tmp_path, gender):
    (tmp_path / "png.csv").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    (tmp_path / "latin.csv").write_bytes(csv_with("male,30,180,5,Müller").encode("latin-1"))
    (tmp_path / "utf-16.csv").write_bytes(csv_with("male,30,180,5").encode("utf-16"))
    (tmp_path / "zeros.csv").write_bytes(bytes(1000))
    for name in ("png.csv", "latin.csv", "utf-16.csv", "zeros.csv", "missing.csv", "."):
        assert assert_one_sentence(gender("--csv", tmp_path / name), str(tmp_path / name)) == ""
    assert_one_sentence(gender("--csv", tmp_path / "missing.csv"), "No such file")
    assert_one_sentence(gender("--csv", tmp_path), "directory")


def test_column_that_is_constant_in_the_training_part_is_refused(tmp_path, gender):
    path = tmp_path / "men.csv"
    path.write_text(csv_with("male,30,180,5"), encoding="utf-8")
    assert_one_sentence(gender("--csv", path), "'Gender'", "from 1 to 1", "training")


def test_split_is_a_seeded_partition_of_the_rows():
    table = train_gender.parse_people(train_gender.sample_csv(), "the sample")
    first, again, other = (train_gender.split_table(table, 0.2, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert {part: len(rows) for part, rows in first.items()} == {"train": 105, "test": 26}
    pd.testing.assert_frame_equal(pd.concat(first.values()).sort_index(), table)
    assert first["test"].index.tolist() == again["test"].index.tolist() != sorted(again["test"].index)
    assert set(first["test"].index) != set(other["test"].index)


@pytest.mark.parametrize(("fraction", "advice"), [("0.001", "larger"), ("0.999", "smaller")])
def test_fraction_that_leaves_a_part_empty_is_refused(fraction, advice, gender):
    assert_one_sentence(gender("--source", "sample", "--test-fraction", fraction), fraction, "131", advice)


def test_scaling_knows_the_training_part_alone(gender_csv):
    rows = train_gender.split_table(read_people(gender_csv), 0.2, np.random.default_rng(0))
    scaled = {part: np.hstack(arrays) for part, arrays in train_gender.scale_parts(rows).items()}
    assert scaled["train"].min(axis=0).tolist() == [0, 0, 0, 0]
    assert scaled["train"].max(axis=0).tolist() == [1, 1, 1, 1]
    for j, column in enumerate(COLUMNS):
        low, high = rows["train"][column].min(), rows["train"][column].max()
        np.testing.assert_allclose(low + (high - low) * scaled["test"][:, j], rows["test"][column], rtol=1e-12)
    rows["test"] = rows["test"] * 3
    np.testing.assert_array_equal(np.hstack(train_gender.scale_parts(rows)["train"]), scaled["train"])


# The model and the report


def test_prediction_is_the_tanh_network_written_out():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 3))
    (w, b), (v, c) = layers = train_gender.make_layers([3, 5, 1], rng)
    expected = [
        sum(math.tanh(sum(x[i, k] * w.data[k, j] for k in range(3)) + b.data[j]) * v.data[j, 0] for j in range(5))
        for i in range(7)
    ]
    np.testing.assert_allclose(train_gender.predict(layers, x).data[:, 0], np.array(expected) + c.data, rtol=1e-12)
    np.testing.assert_allclose(train_gender.predict(layers[:1], x).data, x @ w.data + b.data, rtol=1e-12)


def test_measures_are_those_worked_out_by_hand():
    y, predicted = np.array([[0.0], [0.5], [1.0]]), np.array([[0.5], [0.5], [0.0]])
    # errors 0.5, 0, -1; squares 0.25 + 0 + 1 = 1.25; squared distances to the mean 0.25 + 0 + 0.25 = 0.5
    assert train_gender.measure(predicted, y, 1000.0) == {"mse": 1.25 / 3, "mae_usd": 500.0, "r2": -1.5}
    assert train_gender.measure(predicted, np.full_like(y, 0.1), 1.0)["r2"] is None


def fit_in_dollars(path, seed, columns):
    """R2, mean absolute error and scaled mean squared error of a fit by the normal equations, in the file's units."""
    rows = train_gender.split_table(read_people(path), 0.2, np.random.default_rng(seed))
    train, test = (rows[part].assign(one=1.0) for part in ("train", "test"))
    a = train[columns].to_numpy()
    weights = np.linalg.solve(a.T @ a, a.T @ train["Income (USD)"].to_numpy())
    span = np.ptp(train["Income (USD)"])
    for part in (train, test):
        error = part["Income (USD)"] - part[columns] @ weights
        r2 = 1 - (error**2).sum() / ((part["Income (USD)"] - part["Income (USD)"].mean()) ** 2).sum()
        yield {"mse": (error**2).mean() / span**2, "mae_usd": error.abs().mean(), "r2": r2}


@pytest.mark.parametrize("seed", [0, 1])
def test_linear_model_settles_on_least_squares_and_yardsticks_are_right(gender_csv, seed, gender):
    status, out, err = gender("--csv", gender_csv, "--seed", seed, "--json")
    assert (status, err) == (0, "")
    report = strict_json(out)
    for name, columns in (("least_squares", ["one", *COLUMNS[:3]]), ("mean", ["one"])):
        for part, expected in zip(("train", "test"), fit_in_dollars(gender_csv, seed, columns), strict=True):
            assert report[name][part] == pytest.approx(expected, rel=1e-8, abs=1e-12)
    for part in ("train", "test"):
        assert report["model"][part]["mse"] == pytest.approx(report["least_squares"][part]["mse"], rel=0.01)
    assert report["model"]["train"]["mse"] >= report["least_squares"]["train"]["mse"] * (1 - 1e-12)


def test_hidden_layer_fits_the_training_part_better_than_any_line(gender):
    report = strict_json(gender("--source", "sample", "--hidden=8", "--epochs=400", "--json")[1])
    assert report["model"]["train"]["mse"] < 0.97 * report["least_squares"]["train"]["mse"]


def test_learning_rate_falls_to_zero_along_half_a_cosine(monkeypatch):
    rates = []

    class Recorder(train_gender.SGD):
        def step(self):
            rates.append(self.lr)
            super().step()

    monkeypatch.setattr(train_gender, "SGD", Recorder)
    assert train_gender.main(["--source=sample", "--epochs=4", "--batch-size=1000", "--lr=0.4"]) == 0
    assert rates == pytest.approx([0.4, 0.2 + 0.2 * math.sqrt(0.5), 0.2, 0.2 - 0.2 * math.sqrt(0.5)])


@pytest.mark.parametrize(("batch_size", "sizes"), [(32, {26, 27}), (1000, {105}), (1, {1}), (104, {52, 53})])
def test_every_epoch_takes_every_row_once_in_even_batches(batch_size, sizes, monkeypatch):
    batches = []
    predict = train_gender.predict
    monkeypatch.setattr(train_gender, "predict", lambda layers, x: (batches.append(x), predict(layers, x))[1])
    train_gender.main(["--source=sample", "--epochs=1", f"--batch-size={batch_size}"])
    train, _, *steps, _, _ = batches  # before and after the epoch both parts are predicted whole
    assert {len(step) for step in steps} == sizes
    np.testing.assert_array_equal(np.sort(np.vstack(steps), axis=0), np.sort(train, axis=0))


def test_same_seed_gives_the_same_report_and_another_seed_another(gender):
    reports = [strict_json(gender("--source=sample", "--epochs=3", "--json", f"--seed={s}")[1]) for s in (5, 5, 6)]
    for report in reports:
        assert report.pop("seconds") > 0
    assert reports[0] == reports[1] != reports[2]


def test_json_is_one_object_with_every_promised_part(gender):
    status, out, err = gender("--source", "sample", "--epochs", "3", "--json")
    report = strict_json(out)
    assert (status, err) == (0, "")
    assert (report["rows_train"], report["rows_test"], report["epochs"], report["interrupted"]) == (105, 26, 3, False)
    assert report["source"] == "sample (131 generated rows, not real data)"
    for name in ("model", "mean", "least_squares"):
        assert {part: list(report[name][part]) for part in report[name]} == {
            "train": ["mse", "mae_usd", "r2"],
            "test": ["mse", "mae_usd", "r2"],
        }


def test_report_names_the_source_first_then_losses_errors_and_five_test_rows(gender_csv, gender):
    status, out, err = gender("--csv", gender_csv, "--epochs", "40")
    report = strict_json(gender("--csv", gender_csv, "--epochs", "40", "--json")[1])
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == [f"source: {gender_csv}", "rows: 105 for training, 26 for testing"]
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert [int(line[6:].split(":")[0]) for line in epochs] == list(range(0, 41, 4))
    for part, word in (("train", "training"), ("test", "test")):
        assert f"{word} loss {report['model'][part]['mse']:.6g}" in epochs[-1]
    for name in ("model", "mean", "least_squares"):
        printed = [line.split()[-3:] for line in lines if line.split()[-4:-3] == [name]]
        measures = [report[name][part].values() for part in ("train", "test")]
        assert printed == [[f"{mse:.6g}", f"${mae:,.0f}", f"{r2:.4g}"] for mse, mae, r2 in measures]
    test = train_gender.split_table(read_people(gender_csv), 0.2, np.random.default_rng(0))["test"]
    for line, row in zip(lines[-5:], test.head().itertuples(index=False), strict=True):
        sex, age, height, income, predicted = line.split()
        assert [sex, float(age), float(height)] == ["male" if row[0] else "female", row[1], row[2]]
        assert income == f"${row[3]:,.0f}"
        assert predicted.startswith("$")


def test_five_test_rows_show_the_predictions_that_the_error_is_made_of(gender):
    lines = gender("--source=sample", "--test-fraction=0.038", "--epochs=20")[1].splitlines()
    assert lines[1] == "rows: 126 for training, 5 for testing"
    rows = [[float(text.replace("$", "").replace(",", "")) for text in line.split()[-2:]] for line in lines[-5:]]
    mean_absolute_error = [line.split()[-2] for line in lines if line.split()[-4:-3] == ["model"]][1]
    expected = sum(abs(income - predicted) for income, predicted in rows) / 5
    assert float(mean_absolute_error.replace("$", "").replace(",", "")) == pytest.approx(expected, abs=1)


def test_no_epochs_report_the_untrained_model(gender):
    report = strict_json(gender("--source=sample", "--epochs=0", "--json")[1])
    assert report["epochs"] == 0
    assert report["model"]["train"]["mse"] > report["least_squares"]["train"]["mse"]
    assert "epoch     0: " in gender("--source=sample", "--epochs=0")[1]


def test_r2_of_a_single_test_row_is_left_out_not_nan(gender):
    options = ("--source=sample", "--epochs=1", "--test-fraction=0.01")
    report = strict_json(gender(*options, "--json")[1])
    assert report["rows_test"] == 1
    assert [report[name]["test"]["r2"] for name in ("model", "mean", "least_squares")] == [None] * 3
    out = gender(*options)[1]
    assert "nan" not in out.lower()
    assert [line.split()[-1] for line in out.splitlines() if " least_squares " in line][1] == "-"


# Bad options, overflow, interruption


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--batch-size 0", ["--batch-size", "'0'", "1 or more"]),
        ("--batch-size 2.5", ["--batch-size", "'2.5'", "integer"]),
        ("--epochs -1", ["--epochs", "'-1'", "0 or more"]),
        ("--epochs ten", ["--epochs", "'ten'"]),
        ("--hidden -1", ["--hidden", "'-1'"]),
        ("--hidden 1000000000000", ["--hidden", "10000"]),
        ("--lr nan", ["--lr", "'nan'", "above 0"]),
        ("--lr inf", ["--lr", "'inf'", "finite"]),
        ("--lr 0", ["--lr", "'0'"]),
        ("--lr=-1e-3", ["--lr", "'-1e-3'"]),
        ("--momentum 1", ["--momentum", "'1'", "below 1"]),
        ("--momentum -0.1", ["--momentum", "'-0.1'"]),
        ("--momentum nan", ["--momentum", "'nan'"]),
        ("--seed -1", ["--seed", "'-1'"]),
        ("--test-fraction 0", ["--test-fraction", "'0'"]),
        ("--test-fraction 1", ["--test-fraction", "'1'"]),
        ("--test-fraction nan", ["--test-fraction", "'nan'"]),
        ("--source web", ["--source", "'web'", "kaggle"]),
        ("--source sample --csv x.csv", ["--csv", "--source"]),
        ("--csv", ["--csv", "expected one argument"]),
        ("--sede 1", ["--sede"]),
        ("gender.csv", ["gender.csv"]),
        ("--see 1", ["--see"]),
        ("a\nb", ["a b"]),
    ],
)
def test_bad_option_is_refused_in_one_sentence(options, words, gender):
    assert assert_one_sentence(gender(*options.split(" ")), *words) == ""


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [["--lr=1e6"], ["--lr=1e300"], ["--lr=1.7e308", "--hidden=3"], ["--lr=50"]])
def test_loss_that_overflows_stops_with_the_epoch_and_no_report(options, gender):
    out = assert_one_sentence(gender("--source=sample", *options), "overflow", "epoch", "--lr")
    assert "nan" not in out
    assert "inf" not in out
    assert "mean squared" not in out
    assert assert_one_sentence(gender("--source=sample", "--json", *options), "overflow") == ""


def start(*argv):
    """The script as a user starts it."""
    command = [sys.executable, str(HERE / "train_gender.py"), "--epochs=1000000", *argv]
    # A test run in the background ignores SIGINT, and what it starts would, too.
    unignore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)} if os.name == "posix" else {}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **unignore)


def test_interruption_ends_with_the_report_so_far():
    with start("--source=sample") as process:
        while not process.stdout.readline().startswith("epoch "):
            pass
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "")
    assert "interrupted in epoch " in out
    assert out.count(" least_squares ") == 2
    assert "nan" not in out.lower()


def test_interruption_under_json_still_prints_one_object(no_kagglehub):
    with start("--json") as process:
        assert "using the generated sample" in process.stderr.readline()  # now it is about to train
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    report = strict_json(out)
    assert (process.returncode, err, report["interrupted"]) == (130, "", True)
    assert 0 <= report["epochs"] < 1_000_000


def test_reader_that_leaves_early_is_no_error():
    with start("--source=sample", "--epochs=20") as process:
        assert process.stdout.readline() == "source: sample (131 generated rows, not real data)\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=20) == 141


def test_script_run_by_a_user_trains_on_a_file(gender_csv):
    done = run_script("train_gender.py", "--csv", gender_csv, "--epochs", 2)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"source: {gender_csv}\n")


# Kaggle, through kagglehub's real client


class Kaggle(http.server.BaseHTTPRequestHandler):
    """The two calls of Kaggle's API that kagglehub makes for a file, and the storage that the second leads to."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        call = self.path.rpartition("/")[2]
        self.server.calls.append((call, request))
        if self.server.status != 200:
            self.reply(self.server.status, b"no luck", {})
        elif call == "GetDataset":
            body = json.dumps({"ref": train_gender.DATASET, "currentVersionNumber": self.server.version}).encode()
            self.reply(200, body, {"Content-Type": "application/json"})
        else:
            self.reply(302, b"", {"Location": "http://localhost:7777/storage/gender.csv"})

    def do_GET(self):
        digest = b64encode(hashlib.md5(self.server.file).digest()).decode()
        self.reply(200, self.server.file, {"Accept-Ranges": "bytes", "x-goog-hash": f"md5={digest}"})

    def reply(self, status, body, headers):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def kaggle(status=200, version=3, file=b""):
    """Kaggle on localhost, answering with a status, a latest version and a file; gives the list of calls it got."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 7777), Kaggle) as server:
        server.status, server.version, server.file, server.calls = status, version, file, []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.calls
        finally:
            server.shutdown()
            thread.join()


def cache_version(version, text):
    """Lay a version of gender.csv out in kagglehub's cache, as a download would."""
    folder = Path(os.environ["KAGGLEHUB_CACHE"], "datasets", *train_gender.DATASET.split("/"))
    for path in (folder / "versions" / str(version) / "gender.csv", folder / ".complete" / str(version)):
        path.parent.mkdir(parents=True, exist_ok=True)
    (folder / "versions" / str(version) / "gender.csv").write_text(text, encoding="utf-8")
    (folder / ".complete" / str(version)).mkdir()
    (folder / ".complete" / str(version) / "gender.csv.complete").touch()


SLUG = "muhammadtalharasool/simple-gender-classification"
QUICK = ("--epochs=1", "--json")


def test_latest_version_is_downloaded_from_kaggle_and_then_served_from_the_cache(tmp_path, gender, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("kagglehub.py").write_text("raise ImportError('the folder that one happens to be in')")
    with kaggle(version=3, file=train_gender.sample_csv().encode()) as calls:
        status, out, err = gender("--source=kaggle", *QUICK)
        assert (status, err, strict_json(out)["source"]) == (0, "", f"kaggle ({SLUG}, version 3)")
        status, out, err = gender("--epochs=1")  # auto, the default
        assert (status, err, out.splitlines()[0]) == (0, "", f"source: kaggle ({SLUG}, version 3)")
    assert [call for call, _ in calls] == ["GetDataset", "DownloadDataset", "GetDataset"]
    assert calls[1][1] | {"datasetVersionNumber": 3, "fileName": "gender.csv"} == calls[1][1]


@pytest.mark.usefixtures("kaggle_is_this_machine")
def test_script_run_by_a_user_trains_on_what_kaggle_serves():
    with kaggle(version=2, file=train_gender.sample_csv().encode()):
        done = run_script("train_gender.py", "--epochs", 2)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"source: kaggle ({SLUG}, version 2)\n")
    assert done.stdout.count(" least_squares ") == 2


@pytest.mark.parametrize("status", [500, None])
def test_cached_version_1_is_used_when_kaggle_cannot_be_reached_and_the_source_says_so(status, gender):
    cache_version(1, train_gender.sample_csv())
    with kaggle(status=status) if status else contextlib.nullcontext():
        exit_status, out, err = gender("--source=kaggle", *QUICK)
    assert (exit_status, err) == (0, "")
    source = strict_json(out)["source"]
    assert source.startswith(f"kaggle ({SLUG}, version 1; Kaggle did not give the latest: ")
    assert (str(status) if status else "refused") in source
    assert "\n" not in source


def test_without_kaggle_and_cache_auto_takes_the_sample_and_says_why(gender):
    status, out, err = gender(*QUICK)
    assert (status, strict_json(out)["source"]) == (0, "sample (131 generated rows, not real data)")
    assert err.startswith("warning: no data from Kaggle (ConnectionRefusedError: ")
    assert err.endswith("): using the generated sample\n")
    assert err.count("\n") == 1
    assert len(err) < 300


def test_source_kaggle_never_takes_the_sample(gender):
    with kaggle(status=404):
        assert assert_one_sentence(gender("--source=kaggle", *QUICK), "404", "--csv", "--source sample") == ""


def test_refusal_by_kaggle_itself_is_not_covered_up_by_the_cache(gender):
    cache_version(1, train_gender.sample_csv())
    with kaggle(status=403) as calls:
        assert_one_sentence(gender("--source=kaggle", *QUICK), "403")
    assert [call for call, _ in calls] == ["GetDataset"]


def test_bad_file_from_kaggle_is_named_and_never_replaced_by_the_sample(gender):
    with kaggle(file=b"<html>please log in</html>\n"):
        assert_one_sentence(gender(*QUICK), os.environ["KAGGLEHUB_CACHE"], "gender.csv", "<html>")


@contextlib.contextmanager
def silent_kaggle():
    """A server that accepts connections and never answers; at the end every client must have hung up."""
    with socket.create_server(("127.0.0.1", 7777)) as server:
        yield
        server.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(5)
                    while connection.recv(65536):
                        pass


def test_silent_server_is_given_up_after_the_limit(gender, monkeypatch):
    monkeypatch.setattr(train_gender, "KAGGLE_SECONDS", 1.5)
    with silent_kaggle():
        begin = time.monotonic()
        status, out, err = gender(*QUICK)
        assert time.monotonic() - begin < 4
    assert (status, strict_json(out)["rows_train"]) == (0, 105)
    assert err == "warning: no data from Kaggle (no answer within 1 s): using the generated sample\n"


def test_cached_version_1_is_used_within_the_limit_after_a_silent_server(gender, monkeypatch):
    monkeypatch.setattr(train_gender, "KAGGLE_SECONDS", 4.5)
    cache_version(1, train_gender.sample_csv())
    with silent_kaggle():
        status, out, err = gender("--source=kaggle", *QUICK)
    assert (status, err) == (0, "")
    source = strict_json(out)["source"]
    assert source == f"kaggle ({SLUG}, version 1; Kaggle did not give the latest: no answer within 3 s)"


def test_kagglehub_that_cannot_be_imported_is_a_reason_like_any_other(no_kagglehub, gender):
    assert_one_sentence(gender("--source=kaggle"), "ImportError: no wheel")


def test_limit_for_kaggle_is_15_seconds():
    assert train_gender.KAGGLE_SECONDS == 15
