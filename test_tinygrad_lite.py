"""Tests of tinygrad_lite and its two scripts: every rule against central differences and a second engine."""

from __future__ import annotations

import ast
import asyncio
import collections
import contextlib
import copy
import doctest
import fcntl
import functools
import gc
import gzip
import hashlib
import importlib.metadata
import importlib.util
import inspect
import io
import itertools
import json
import logging
import math
import operator
import os
import pickle
import pty
import re
import shlex
import signal
import site
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
import tokenize
import tomllib
import tracemalloc
import types
import warnings
import weakref
import zipfile
from base64 import b64encode
from pathlib import Path
from typing import Any
from unittest import mock
from wsgiref.simple_server import WSGIRequestHandler, make_server

import autograd
import autograd.misc.optimizers
import autograd.numpy as anp
import cloudpickle
import dask
import dask.array as da
import distributed
import matplotlib.pyplot
import numpy as np
import pandas as pd
import pydot
import pytest
import scipy.special
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, basic_indices, integer_array_indices, mutually_broadcastable_shapes
from numpy.testing.overrides import get_overridable_numpy_array_functions, get_overridable_numpy_ufuncs

import tinygrad_lite
import train_gender
import train_linear
from tinygrad_lite import (
    SGD,
    Tensor,
    defvjp,
    detect_anomaly,
    grad,
    gradcheck,
    hessian,
    jacobian,
    jit,
    jvp,
    no_grad,
    relu,
    sigmoid,
    to_dot,
    value_and_grad,
)

settings.register_profile("suite", deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
settings.load_profile("suite")

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts this in the background ignores Ctrl-C

HERE = Path(__file__).parent
README, *DOCS = PAGES = [HERE / "README.md", *sorted(HERE.glob("docs/*.md"))]
# Where the tests run on several Pythons, TEST_PART=1/3 and so on share out those of hundreds of slow cases.
PART, PARTS = map(int, os.environ.get("TEST_PART", "1/1").split("/"))
SEEDS = st.integers(0, 2**32 - 1)
FLOATS = [np.float16, np.float32, np.float64]


def shared_out(cases: Any) -> list[Any]:
    return [*cases][PART - 1 :: PARTS]


def leaf(data: Any, dtype: Any = float) -> Tensor:
    return Tensor(np.array(data, dtype), requires_grad=True)


def grads(f: Any, *arrays: Any, weights: Any = 1.0) -> tuple[Any, list[Any]]:
    """The value of f and the gradients of its weighted sum with respect to every array."""
    leaves = [leaf(a, np.asarray(a).dtype) for a in arrays]
    out = f(*leaves)
    out.backward(np.broadcast_to(weights, out.shape))
    return out.data, [t.grad for t in leaves]


@pytest.fixture(scope="session", autouse=True)
def what_is_there_before_the_tests_is_no_garbage() -> None:
    gc.freeze()  # nor is it searched for any


@pytest.fixture(scope="module")
def cluster() -> Any:
    options: Any = {"dashboard_address": ":0", "silence_logs": logging.CRITICAL}
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, **options) as cluster:
        yield cluster


# --- The table of calls -----------------------------------------------------------------------------------------------
# One table of calls, of every function that Tensors answer: for NumPy, Tensors, the second engine, jit and arrays of
# other libraries. A domain says where random arguments are drawn from, away from the kinks, which have own tests.

DOMAINS: dict[str, Any] = {
    "any": lambda rng, shape: rng.uniform(0.2, 2.0, shape) * rng.choice([-1, 1], shape),
    "positive": lambda rng, shape: rng.uniform(0.3, 2.0, shape),
    "signs": lambda rng, shape: rng.uniform(0.2, 2.0, shape) * (1 - 2 * (np.indices(shape).sum(0) % 2)),  # both of them
    "inside": lambda rng, shape: rng.uniform(0.1, 0.8, shape) * rng.choice([-1, 1], shape),
    "above_1": lambda rng, shape: rng.uniform(1.2, 3.0, shape),
    "dividend": lambda rng, shape: rng.uniform(4.5, 5.9, shape) * rng.choice([-1, 1], shape),  # floors 2 and -3 with
    "divisor": lambda rng, shape: rng.uniform(2.0, 2.2, shape),
    "fraction": lambda rng, shape: rng.uniform(0.61, 0.65, shape),  # of which 1, 1.5, 2 and 3 hold no whole number
    "matrix": lambda rng, shape: rng.uniform(-1, 1, shape) + 3 * np.eye(*shape[-2:]),  # one to invert
    "boolean": lambda rng, shape: rng.random(shape) < 0.5,
    "with_nan": lambda rng, shape: np.where(np.eye(*shape) > 0, np.nan, rng.uniform(0.2, 2.0, shape)),
    "knots": lambda rng, shape: np.arange(*shape) + rng.uniform(0.1, 0.3, shape),
    "between": lambda rng, shape: np.arange(*shape) + rng.uniform(0.4, 0.9, shape),
}


class A:
    """A random array in a call, to differentiate by if its domain is one of floats."""

    def __init__(self, *shape: int, of: str = "any"):
        self.shape, self.domain, self.is_symmetric = shape, of.removeprefix("symmetric "), of.startswith("symmetric")

    def filled(self, x: Any) -> Any:  # with the symmetric part where NumPy reads one triangle alone
        return (x + np.swapaxes(x, -1, -2)) / 2 if self.is_symmetric else x

    def __repr__(self) -> str:
        return f"{'symmetric ' * self.is_symmetric}{self.domain}{self.shape}"


def tree_map(function: Any, tree: Any) -> Any:
    """The function of every leaf of nested lists, tuples and dicts."""
    if isinstance(tree, dict):
        return operator.ior(copy.copy(tree), {key: tree_map(function, item) for key, item in tree.items()})
    if isinstance(tree, (list, tuple)):
        items = [tree_map(function, item) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return function(tree)


def tree_leaves(tree: Any) -> list[Any]:
    leaves: list[Any] = []
    tree_map(leaves.append, tree)
    return leaves


def is_float(x: Any) -> bool:
    return getattr(x, "dtype", np.dtype(int)).kind == "f"


class Call:
    """The arguments of a call, which may have arrays to be drawn, A(...), in them, also within lists and tuples."""

    is_everywhere = False  # made on arrays of other libraries too
    has_second = True  # not one that the second engine differentiates wrongly

    def __init__(self, *args: Any, **options: Any):
        self.arguments = args, options
        self.drawn = [x for x in tree_leaves(self.arguments) if isinstance(x, A)]

    def draw(self, seed: int = 0) -> list[Any]:
        rng = np.random.default_rng(seed)
        return [np.asarray(DOMAINS[x.domain](rng, x.shape)) for x in self.drawn]

    def of(self, function: Any, arrays: Any) -> Any:
        each = iter(arrays)
        args, options = tree_map(lambda x: x.filled(next(each)) if isinstance(x, A) else x, self.arguments)
        return function(*args, **options)

    def cast(self, dtype: Any) -> Call:
        """The same call with its constant arrays of floats converted."""
        args, options = tree_map(lambda x: x.astype(dtype) if is_float(x) else x, self.arguments)
        return Call(*args, **options)

    def __repr__(self) -> str:
        args, options = tree_map(lambda x: f"{x.dtype}{x.shape}" if isinstance(x, np.ndarray) else x, self.arguments)
        return ", ".join([*map(repr, args), *(f"{key}={value!r}" for key, value in options.items())])


ELEMENTWISE = {
    name: domains.split()
    for domains, names in {
        "any any": "add subtract multiply divide maximum minimum fmax fmin hypot arctan2 logaddexp logaddexp2 copysign",
        "any": "positive negative cbrt square reciprocal exp exp2 expm1 sin cos arctan sinh cosh tanh arcsinh deg2rad "
        "radians rad2deg degrees nan_to_num sigmoid conjugate real real_if_close sinc",
        "signs": "absolute fabs relu",
        "positive": "sqrt log log2 log10 log1p",
        "inside": "tan arcsin arccos arctanh",
        "positive any": "power",
        "dividend divisor": "remainder",
        "above_1": "arccosh",
        "boolean any any": "where",
        "any inside above_1": "clip",
    }.items()
    for name in names.split()
}
BINARY = [name for name, domains in ELEMENTWISE.items() if len(domains) == 2]
SHAPES: dict[int, list[Any]] = {
    1: [((1, 3),), ((3,),), ((),), ((0, 2),)],
    2: [((3,), (2, 3)), ((2, 1), (1, 3)), ((), ()), ((), (3,)), ((0,), (1,)), ((2, 0), (2, 1))],
    3: [((2, 1), (1, 3), (3,)), ((3,), (), (2, 1)), ((), (), ()), ((1,), (0,), ())],
}


def elementwise(name: str) -> list[Call]:
    """Calls in all kinds of shapes that broadcast, and of two operands beside constants of every kind."""
    domains = ELEMENTWISE[name]
    calls = [Call(*[A(*s, of=d) for s, d in zip(shapes, domains, strict=True)]) for shapes in SHAPES[len(domains)]]
    calls[0].is_everywhere = True
    for call in calls:
        call.has_second = name not in ("where", "clip")  # which autograd does not broadcast
    if name in BINARY:
        first, second = [A(2, 3, of=d) for d in (domains[0], "fraction" if name == "remainder" else domains[1])]
        whole = 1 if name in ("maximum", "fmax") else 2  # draws are on both sides of it, or else 2 would always win
        others: list[Any] = [whole, np.array([1, 2, 3]), True, np.float32(1.5), np.array([[True], [True]])]
        beside = [Call(*pair) for other in others for pair in ((first, other), (other, second))]
        for i, call in enumerate(beside):
            call.is_everywhere = i < 4
            call.has_second = (name, i) != ("power", 7)  # of a float32, whose logarithm autograd takes in float32
        calls += beside
    return calls


OF_THIS_FILE = {"relu": relu, "sigmoid": sigmoid, "getitem": operator.getitem, "astype": lambda x, to: x.astype(to)}


def named(name: str) -> Any:
    """The function, or None if this release of NumPy has it not."""
    return OF_THIS_FILE.get(name) or functools.reduce(lambda x, part: getattr(x, part, None), name.split("."), np)


def alternatives(text: str) -> list[str]:
    """What braces stand for: ``a{b/c}`` for ``ab`` and ``ac``."""
    before, brace, rest = text.partition("{")
    inside, _, after = rest.partition("}")
    return [before + one + end for one in inside.split("/") for end in alternatives(after)] if brace else [text]


def calls(text: str) -> list[str]:
    return [one for case in text.replace("\n", ";").split(";") if case.strip() for one in alternatives(case.strip())]


REFUSED: dict[str, list[Call]] = collections.defaultdict(list)


def table(text: str) -> dict[str, list[Call]]:
    """The calls of functions, line by line: ``names: arguments; arguments | arguments | arguments``.

    Those in front of the first bar are also made on arrays of other libraries; those behind the second are refused by
    NumPy; those that begin with ! are differentiated wrongly by the second engine. A line may be for some releases of
    NumPy alone, n is a number that goes with the function, and a line goes on where the next is indented more.
    """
    found = collections.defaultdict(list)
    short = {domain: functools.partial(A, of=domain) for domain in [*DOMAINS, "symmetric matrix"] if domain != "any"}
    short["symmetric"] = short.pop("symmetric matrix")
    for line in re.sub(r"\n {8,}", " ", text).split("\n"):
        names, _, said = line.partition(":")
        release = re.match(r"\s*(>=|<) (\S+) ", names)
        if release and (np.lib.NumpyVersion(np.__version__) >= release[2]) != (release[1] == ">="):
            continue
        for name in filter(named, names[release.end() if release else 0 :].split()):
            short["n"] = {"percentile": 100, "max": 0.1, "min": 1.3}.get(name, 1)
            for i, part in enumerate(said.split("|")):
                for arguments in calls(part):
                    call = eval(f"Call({arguments.strip(' !')})", globals(), short)
                    call.is_everywhere, call.has_second = i == 0, "!" not in arguments
                    (REFUSED if i == 2 else found)[name].append(call)
    return dict(found)


REDUCTIONS = ["sum", "mean", "max", "min", "prod", "var", "std"]
X, V, S, N = A(2, 3), A(3), A(), A(2, 3, 2)  # a matrix, a vector, a number, more axes
M, MM, W = A(3, 3, of="matrix"), A(2, 3, 3, of="matrix"), A(3, 3, of="with_nan")
ONES, INTS, LIST = np.ones((2, 3)), np.arange(6).reshape(2, 3), [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
MASK, inf, nan = np.array([[True, False, True], [False, True, True]]), math.inf, math.nan

CATALOGUE = table("""
    where: boolean(2, 3), X, X; MASK, X, 0; !boolean(2, 3), V, 1.0 | | True, X
    clip: X, -0.9, 1.1; X, None, 1.1; X, -1, above_1(2, 3); X, -INTS - 0.1, ONES | X, a_min=-0.9, a_max=None;
        X, a_min=-1, a_max=1.5; ONES, above_1(3), 3.5; INTS, S, above_1(3) | X, A(2), 3.0
    >= 2.1.0 clip: X, min=-0.9; X, max=above_1(3) | X, min=inside(2, 1), max=1.1
    nan_to_num: | X, nan=1.0; X, posinf=2.0, neginf=-3.0; S, nan=2
    ldexp: X, 2 | S, np.array([1, -2]); A(2, 1), np.array([0, 3, -1], np.int8); V, -3
    sum mean max min prod var std ptp median average nansum nanmean nanvar nanstd nanmax nanmin amax amin: X;
        X, axis=0, keepdims=False; X, axis=-1, keepdims=True; N, axis=(0, -1) | {S/A(4)}; S, axis=(); A(4), axis=0;
        X, keepdims=True; X, axis={(1,)/()}; X, axis={(0, 1)/()}, keepdims=True; N, axis=(-1, 0), keepdims=True;
        N, axis=(0, 2, 1); A(1, 3), axis=0 | X, 2; X, axis={-3/5/(0, 0)}; S, 3
    nanmax nanmin: | | A(0)
    sum mean: | !X{/, 0}, where=MASK; !X, axis=(0, -1), where=MASK[:, :1], keepdims=True;
        !N, (1, 2), where=MASK[..., None]; N, -1, keepdims=True, where=MASK[..., None] < 2
    sum: | X, initial=2.5; !X, 0, where=MASK, initial=np.float32(1); A(0, 2), initial=3
    sum prod: | A(0, 2){/, axis=0}
    max min: | A(0, 2), {1, initial=2/0, initial=-1.5}; X, 1, initial=n; X{/, 0}, where=MASK, initial=np.float32(n);
        N, {(1, 2), where=MASK[..., None]/-1, where=MASK[..., None] < 2}, initial=np.float32(n);
        X, axis=(0, -1), where=MASK[:, :1], keepdims=True, initial=np.float32(n) | A(0)
    var std nanvar nanstd: X, axis=0, ddof=1 | X, axis=1, ddof=1; X, ddof=0.5; N, (0, -1), ddof=1, keepdims=True
    nansum nanmean nanmax nanmin nanvar nanstd: | W{/, 0}; W, {1/-1}, keepdims=True
    median: | A(5); A(2, 5), axis=1; A(3, 3), 0
    average: X, weights=positive(2, 3); X, 1, positive(3); X, axis=0, weights=np.array([1.0, 3.0]) |
        X, weights={ONES/INTS/INTS.astype(np.int8) + 1/ONES > 0}; A(4), weights=[1, 2, 3, 4]; X, -1, positive(2, 3);
        X, 0, [1.0, 3.0], keepdims=True; N, (0, 2), positive(2, 2); N, (2, 0), np.array([[1, 2], [3, 5]]);
        {np.arange(3.0), weights=/[1, 2, 3], None, }positive(3) | X, weights=V; X, axis=0, weights=V; N, (0, 1), A(3, 2)
    cumsum: X; X, 0 | X, axis=-1; A(4); S; N, 1; A(0, 2), axis=0 | X, 2; X, axis=-3
    cumprod: V; X, axis=-1 | X; X, 0; A(5); S; N, 1; A(0, 2), axis=0; A(2, 0) | X, 2; X, axis=-3
    diff: X; X, 1, 0; A(4, 3), 2, axis=0 | A(5); X, n=2, axis=-1; X, 0; A(4), 4; N, n=2, axis=-2; V, prepend=0.5;
        X, 1, 0, prepend=2, append=1.0; X, n=2, append=A(2, 2); X, 2, -1, A(2, 1); A(0), prepend=1.0; A(1), 1;
        A(0, 2), 1, 0; {INTS, prepend/LIST, append}=A(2, 1); X, 0, prepend=1.0; V, 0, append=A(2) | X, -1; X, axis=2; S
    gradient: X, axis=0 | A({5/2/3, 4}); N, axis={1/(2, 0)}; X; A(3, 4), {0.5, axis=-1/0.3}; X, 2, 0.5;
        A(3, 4), {[0, 1, 3], 2/np.array([0, 0.5, 2, 3]), axis=1}, edge_order=2; A({6/3}), edge_order=2;
        A(5), [0.0, 1.0, 3.0, 3.5, 5.0] | A(1); X, {1, 2, 3/axis=2}; A(2), edge_order=2; V, [1.0, 2.0]
    quantile percentile: X, 0.5 * n, axis=1 | X, 0.3 * n; A(5), [0.1 * n, 0.85 * n]; X, 0.5 * n, 0; A(4), {0/1 * n};
        N, [[0.3 * n, 0.6 * n]], (0, -1), keepdims=True; S, 0.3 * n; X, q=0.2 * n, axis=None;
        A(7), 0.4 * n, method="{lower/nearest/midpoint/inverted_cdf/hazen}";
        A(6), np.array([0.25 * n, 0.7 * n]), method="median_unbiased" | X, {-0.1/101/0.5, 2/0.5, method="nonsense"}
    interp: A(2, 3), [-1.0, 0.0, 2.0], [1.0, 0.0, 3.0] | A(4), [-1.5, 0.1, 0.9, 1.7], A(4); 0.3, [0, 1], A(2);
        A(2, 3), np.arange(-1.0, 2), [1, 3, -2]; [-3.0, 0.5, 9.0], knots(3), A(3); {S/between(3)}, knots(4), A(4);
        x=V, xp=[0], fp=A(1); A(0), [1, 2], A(2) | V, [0, 1], A(3); V, A(0), A(0)
    linspace: V, X, 3 | S, S{/, 0}; 0.0, S, 5; S, 1, num=4; S, 2.0, 4, endpoint=False; V, 1.0, 1;
        start=V, stop=INTS, num=3, axis=-1; LIST, X, 2, axis=1
    convolve: V, A(2) | [1, 2, 3], A(2); A(5), V, "{full/same/valid}"; A(2), A(4), mode="{full/same/valid}";
        A(4), INTS[0], "same"; S, V; V, 2.0; a=V, v=V | X, V; A(0), V; V, V, "nonsense"
    select: [boolean(2, 3), MASK], [X, X], 1.5 | [MASK, ~MASK], [X, X]; [MASK], [V], S; [MASK[0]], [V], [3, 4, 5];
        [MASK[0], [True, False, False]], [V, S], 2.5; [MASK, INTS > 2], {[1.5, X]/[X, 1.5]};
        [MASK, INTS > 2], [X, LIST], S; condlist=[True], choicelist=[S], default=1 | [MASK], [X, X]; [MASK], [A(2, 2)]
    sort: X | X, {0, "stable"/kind="stable"/0/axis=1/None/0, stable=True}; A({5/0}); N, -2 | S; X, {2/kind="nonsense"}
    partition: X, 1 | A(7), 3; X, 1, 0; N, (0, 1), axis=1; X, 2, None; A(5), kth=-1; A(9), [2, 5], kind="introselect" |
        X, 3; S, 0; X, 0, 2
    compress: [True, False, True], V | [True, False, True], X, 1; [0, 1], X, axis=0; [False, True, True, True], X;
        MASK[0], V; condition=[True, True], a=N, axis=-1 | [False, True, True], X, 0; [True], X, 2
    delete: X, 1, axis=0 | X, 1; X, [0, 2], 1; X, slice(None, None, 2), axis=-1; V, [True, False, True]; X, -1, 0;
        N, [], 1; arr=V, obj=np.array([0, -1]) | X, 6; X, 0, 2; X, 3, 1
    take: X, [0, 1, 1], axis=0 | X, {4/[0, -1, 0]/INTS/(0, 4)}; X, 1, 0; X, indices=[2, 0, 2], axis=1; N, 1, axis=-2;
        X, [[0, 1], [1, 1]], axis=0; A(4), np.array([], int); S, 0{/, 0}; V, {[True, False, True]/True/()}; X, (1,), -1;
        X, [7, -8], mode="{wrap/clip}"; X, [[3, -4]], 1, mode="{wrap/clip}"; X, [], 1, mode="wrap" | X, {6/2, 0/0, 2}
    take_along_axis: X, INTS % 2, axis=0 | X, np.array([[0], [2]]), 1; X, INTS % 3, -1; X, INTS[0], None;
        X, indices=np.array([[1, 1, 0]]), axis=-2 | X, np.array([0]), 0; X, INTS, 1; X, ONES, 1; X, INTS % 2, None
    repeat: X, 2, axis=0 | X, 2; A(3), repeats=3, axis=0; !X, repeats=2, axis=-1; S, 3; X, 0; X, [1, 0, 2], axis=1;
        X, np.array([2, 1]), 0; X, [2], axis=1 | X, -1; X, [1, 2], 1; X, 2, 2
    getitem: A(3, 4), {1/-1/(0, 2)/np.s_[:, 1:3]/.../(..., 1)/None/()/np.s_[::2]/np.s_[::-1]/np.s_[0:0]};
        A(3, 4), np.int64(1); A(3, 4), {np.s_[:, None, 1:3]/np.s_[1:4, ::2]/np.s_[None, :, 1]/np.s_[..., None]};
        N, np.s_[0, 1:, None, ::-2] |
        A(3, 4), {[2, 0, 2]/(np.array([0, 0, 1]), np.array([1, 1, -1]))/np.s_[:, [3, 3, 3]]/np.array([[0, 1], [1, 1]])};
        A(3, 4), {MASK[0]/np.arange(12).reshape(3, 4) % 2 == 0/(MASK[0], 1)/np.zeros((3, 4)) > 0/True};
        A(300), {np.uint8(255)/np.int8(127)/np.int8(-128)/np.int16(-1)}
    # Shapes and places.
    reshape: X, (-1,); X, (1, 6); N, (6, 2); N, (2, -1) | X, -1; N, (4, 3); X, (3, -1); S, (1, 1); A(1), ();
        A(0, 2), (3, 0); N, (4, 3), order="F"; X, {-1/(-1, 1, 2)}, order="F"; S, 1, order="F" | X, {5/(-1, -1)/(4, -1)}
    >= 2.1.0 reshape: | N, shape=(4, -1); X, shape=6; X, (3, 2), copy=None
    < 2.1.0 reshape: | N, newshape=(4, -1); X, newshape=6
    ravel: N | X; S; A(3); A(0, 2); X, order="C"; N, "F"; X, order="F"
    squeeze: A(3, 1); A(3, 1), axis=1 | A(1, 3, 1){/, 0/, axis=-1/, (0, 2)}; S; A(1, 1); A(1, 3), axis=() | X, 0; X, 2
    expand_dims: X, axis=1; X, (0, 2) | X, 0; X, -1; X, (0, -1); X, axis=(1, 2); S, 0 | X, 3; X, (0, 0)
    transpose: X; !N, axes=(1, -1, 0) | N; N, {(1, 2, 0)/[2, 0, 1]/np.array([2, 0, 1])}; S; V | X, {(0,)/(0, 0)/(0, 2)}
    swapaxes: N, 0, 2 | N, 0, -1; N, 1, 1; N, axis1=-2, axis2=0 | X, 0, 2; V, 0, 1
    moveaxis: N, 0, -1 | N, source=-1, destination=0; N, [0, 1], [-1, 0]; N, (2, 0), (0, 1); V, 0, 0 | X, 0, 2;
        X, (0, 0), (0, 1); X, (0, 1), 0
    rollaxis: N, 2 | N, 0, 3; N, axis=-1, start=1; V, 0 | X, 2; X, 0, 3
    matrix_transpose linalg.matrix_transpose: X | N; A(2, 1, 2, 3) | V; S
    broadcast_to: V, (2, 3); A(3, 1), (2, 3, 4) | A(3, 1), (3, 4); S, (2,); A(1, 3), shape=(2, 2, 3); S, (); S, 3;
        A(1), (0,); A(4, 1), (3, 4, 2) | V, (2,); X, (3,); X, (2, -3)
    flip: X; X, 1 | X, 0; X, axis=-1; N, (0, 2); S; N, axis=() | X, 2; X, (0, 0)
    fliplr: X | N; A(2, 1) | V
    flipud: X | V; N | S
    roll: X, 2; X, 1, axis=1; X, (1, 2), axis=(0, 1) | X, {-1, 0/shift=1, axis=-1/2, (0, 1)/np.int64(4), 1};
        N, {[1, -1]/np.array([1, 2])}, axis=[0, 0]; S, 1; !X, {/np.array}({2**64 + 1/np.int8(-128)/True}){/, 0};
        !X, {/np.array}({2**63/-(2**63)/np.uint64(2**63)/np.uint8(200)/np.int64(-(2**63))}), 0;
        X, {/np.array}((1, {np.uint8(200)/np.int8(-128)/2**64 + 1/True})), (0, 1) | X, 1, 2; X, (1, 2, 3), (0, 1)
    >= 2.2.0 roll: | V, np.uint8(1); !X, np.array([1, 2], np.uint8), (0, 1); X, {/np.array}(1.0){/, 0};
        !X, {/np.array}({2**63/-(2**63)/np.uint64(2**63)/np.uint8(200)/np.int64(-(2**63))});
        X, {/np.array}(({2**63/-(2**63)/np.uint64(2**63)/np.int64(-(2**63))/1.0}, 1)), (0, 1)
    rot90: X | X, 2; X, k=-1; N, 1, (1, 2); N, k=3, axes=(-1, 0); X, 4 | V; X, 1, (0, 0); X, 1, (0, 2)
    tril triu: X; X, 1 | N, k=-1; !V | S
    diag: V; !A(3, 4) | V, 1; V, k=-2; M; !X, 1; !X, k=-1; X, 5 | S; N
    diagonal: X, 1 | X; M, 1; X, offset=-1; N, 0, 1, 2; N, axis1=2, axis2=0; N, 1, -1, -2 | V; X, 0, 0, 0; X, 0, 0, 2
    trace: X | M, 1; X, offset=-1; N, 0, 0, 1; N, axis1=2, axis2=0; N, 1, -1, -2 | V; X, 0, 0, 0
    tile: X, (2, 1) | !X, 2; V, reps=(2, 2); S, 3; X, (1, 2, 1); X, (0, 1); X, () | X, -1
    pad: X, 1 | X, (1, 2); X, ((0, 1), (2, 0)); V, 2, "constant"; V, pad_width=1; X, 1, constant_values=2.5;
        V, (2, 1), constant_values=(1, -1); X, 0; S, 1; A(0), 2; X, 1, "{edge/reflect/symmetric/wrap}";
        A(3, 4), pad_width=((2, 1), (1, 3)), mode="{edge/reflect/symmetric/wrap}"; X, np.array([[0, 1], [2, 0]]) |
        X, -1; X, ((1, 1),) * 3; X, 1, "nonsense"
    atleast_1d atleast_2d atleast_3d: S; V; X | N; S, X; V, 1.0, S
    copy: X | S
    # What is joined and split.
    concatenate: [X, A(3, 3)]; [ONES, X, ONES], 0; [X, X], None | [X, X]; (X, A(1, 3)); [X, ONES, A(2, 1)], 1;
        [X, X], axis=-1; [V, [1, 2], V], 0; [X, V], None; [X, S], axis=None; [X]; [INTS, X, INTS > 2]; [A(0, 3), X];
        [X, LIST], axis=1; N | [X, V]; [X, A(2, 2)]; [S, S]; [X, X], 2; [X, X], axis=-3
    stack: [X, X], axis=1; [X, ONES] | [X, X]; [V, V, V], 1; [X, ONES], axis=-1; (S, 1.0, S); [X, LIST, INTS], 1;
        A(3, 2), 1 | [X, V]; []; [X, X], 3
    append: X, X; X, ONES, 0 | X, A(1, 3), 0; V, [1, 2]; 2.0, V; LIST, X, axis=1; S, S | X, V, 0; X, A(2, 2), 0
    block: [[X, X], [ONES, ONES]] | [V, A(2)]; [[X, A(2, 1)], [A(1, 3), np.ones((1, 1))]]; [S, 1.0]; X; [[V], [V]];
        [[N, N]]; [X, INTS]; [[[S]], [[S]]]; [V, A(0)] | [X, V, A(3, 3)]; [[X], V]; []
    meshgrid: V, V | V, A(2); V, A(2), indexing="ij"; V, A(2), S, sparse=True; V; X, V, copy=False; V, INTS[0];
        [1, 2], V, 3 | V, A(2), indexing="nonsense"
    vstack: [X, X]; [V, V] | [X, V]; [S, S]; (X, ONES, LIST); [N, N]; [INTS, X]; X | [V, A(2)]; []
    hstack: [X, A(2, 1)]; [V, A(2)] | [S, V]; [X, LIST]; [INTS, X]; X; [1, V] | [X, V]; []
    dstack: [X, X] | [V, V]; [X, LIST]; [S, S]; [N, N]; [N, X]; [INTS, X]
    column_stack: [V, V]; [X, X] | [V, A(3, 2)]; [V, [1, 2, 3]]; (S, S); [INTS, X] | [V, A(2)]; []
    split: A(5, 2), [2, 3]; A(2, 4), 2, axis=1 | A(4), 2; A(4), [1, 3]; V, 1; A(4), {[0, 0, 2, 9]/[3, 1]/[-1]};
        X, indices_or_sections=[1], axis=-1; N, (1,), 1; A(0), 1 | V, 2; X, 2, 2; S, 1
    array_split: A(5, 2), 3 | A(5), 2; A(5), [1, 3]; A(2, 5), 3, 1; X, indices_or_sections=2, axis=-1; V, 5 | V, 0; S, 1
    hsplit: A(2, 4), 2; A(4), [3] | A(4), 2; X, [1]; N, indices_or_sections=[1, 2] | S, 1; V, 2
    vsplit: X, [1] | X, 2; N, indices_or_sections=2 | V, 1; X, 3
    dsplit: N, 2 | N, indices_or_sections=[1] | X, 1; N, 3
    # Products.
    matmul: X, A(3, 4); X, np.ones((3, 2)); INTS.T, X; A(2), X; X, V; V, V; N, A(2, 4); N, A(2); A(5, 2, 3), A(3, 4);
        A(5, 2, 3), V | V, A(3, 2); X, INTS.T; INTS, A(3, 2); X, [1, 0, 2]; N, np.array([[True], [False]]);
        A(1, 3), A(3, 1); V, A(5, 3, 2); X, A(5, 3, 4); A(5, 1, 2, 3), A(4, 3, 2); A(1, 2, 3), A(4, 3, 1);
        A(0, 3), A(3, 2); A(2, 0), A(0, 3); A(0), A(0) | X, X; S, X; X, S; V, A(2)
    linalg.matmul: X, A(3, 2) | N, A(2, 2, 3); INTS, A(3, 2); X, INTS.T | X, X; S, X
    dot: X, A(3, 2); X, V; V, V; N, A(2, 3); X, A(2, 3, 2); X, 2 | V, A(3, 2); S, X; X, S; X, 2.0; S, S; N, A(2);
        N, A(2, 2); V, A(2, 3, 2); N, A(3, 2, 1); V, 2; X, LIST[0]; LIST, V; INTS, V; 3, V; A(0), A(0);
        np.array([[True, False]]), X | X, X; V, A(2); N, V; V, A(2, 2, 2)
    inner: X, A(4, 3); V, V | {X/S}, {V/S}; {V/S}, X; X, [1, 2, 3]; INTS, V; V, 2; N, A({3/2}, 2) | V, A(2); X, A(2, 2)
    outer: V, A(2); INTS[0], V | !X, V; !S, V; [1, 2], V; V, INTS; a=V, b=A(2)
    vdot: X, X | V, V; S, S; X, LIST; INTS, X; N, A(12) | V, A(2); X, V
    kron: X, A(3, 3) | V, A(2); X, A(2, 2); V, X; N, V; S, X; X, 2.0; INTS, X; [1, 2], V
    full_like: X, S | X, fill_value=A(3); V, S, shape=(2, 2); X, S, float; X, X
    tensordot: X, X; X, A(2, 4), axes=(0, 0); N, np.ones((2, 3)), 1; X, V, 0 | X, A(3, 2), 1; V, A(2), 0;
        LIST, A(3, 2), 1; N, A(3, 2, 2), ([1, 0], [0, 1]); N, X, axes=([0, -2], [0, 1]); N, A(4, 3), axes=(1, 1);
        X, A(3, 2), axes=(-1, 0); X, INTS; X, INTS.T, axes=np.int64(1); N, A(2, 2), (2, 0); S, X, 0 | X, A(3, 2);
        X, A(6, 1), ((0, 1), (0, 1)); X, X, 1; X, X, ([0], [1]); X, X, ([0, 1], [0]); V, V, 2; X, X, (2, 0)
    linalg.tensordot: X, A(3, 2), axes=1 | X, X; N, INTS, axes=((1, 0), (1, 0)) | X, X, axes=1
    cross: X, A(2, 3) | V, V; !X, V; A(3, 2), A(3, 2), axis=0; A(3, 2), X, 0, -1; X, [1, 2, 3]; INTS, X;
        X, A(3, 2), axisb=0, axisc=0; !A(2, 1, 3), A(4, 3), -1, -1, 0 | V, A(4); A(4), A(4); X, A(4, 3); S, V
    einsum: "ij,jk", X, A(3, 2); "ij->", X; "ij,kj->j", X, A(4, 3); "ii", M; X, [0, 1], A(3, 2), [1, 2];
        "...j,jk->...k", N, np.ones((2, 3)); "ij,jk,k->i", X, A(3, 2), A(2) |
        "{ij,jk->ik/ba,ac/ij, jk -> ik}", X, A(3, 2); "i,i", V, V; "ij->{ji/i}", X; "ij,j->", X, V; "i,j->ij", V, A(2);
        "ii->i", M; "iij->j", A(2, 2, 3); "iji,j->i", A(2, 3, 2), V; "iii->i", A(2, 2, 2); "...i,i->...", N, A(2);
        "i...,i...->...", X, X; "...ij,...jk", N, A(2, 2); "...,...", X, V; "...ii->...i", MM; "...i->...", X;
        "i...->...", N; "ij,ij->ij", X, A(1, 3); ",ij", S, X; "ij,jk,kl->il", X, A(3, 2), A(2, 2); "i->", A(0);
        "ij,jk,kl", X, A(3, 2), A(2, 2), optimize=True; "i,ij,j->", A(2), X, V, optimize="greedy"; M, [5, 5]; X, [1, 0];
        "ij,kj->ik", X, X, optimize=False; X, [0, 1], A(3, 2), [1, 2], [0, 2]; N, [..., 0], A(2), [0], [...];
        X, [0, 1], V, [1], [], optimize=True; "ij,kl->ij", X, A(2, 2); "ij,jk", X, INTS.T;
        "ij,j", {INTS/LIST/INTS > 2}, V; !"j,j->", V, {A(1)/np.ones(1)}; !"ij,jk->ik", X, A(1, 2);
        !"ij,ij->", A(1, 3), X; "ab,Ab->aA", X, X; "iiA->A", A(2, 2, 3);
        "ii,jk->jk", A(2, 2), X, optimize=["einsum_path", (0, 1)];
        "ij,jk->ki", X, np.ones((3, 2)) | "{i/ij->k/ij->ii/ij,jk/ii}", X; "ij,jk", X, X; "i,i", V, A(2)
    # Linear algebra.
    linalg.inv linalg.det linalg.slogdet: M | MM; matrix(2, 1, 2, 2); matrix(1, 1) | X; V; N
    linalg.solve: M, A(3, 2); M, V | MM, A(2, 3, 2); !MM, A(3, 2); !M, A(2, 3, 2); MM, V; M, [1, 2, 3]; a=M, b=V;
        np.diag([1, 2, 3]), V; [[2.0, 1.0], [0.0, 1.0]], A(2, 2) | X, V; M, A(2); M, A(2, 3); V, V
    linalg.cholesky linalg.eigh linalg.eigvalsh: symmetric(3, 3) | symmetric(2, 3, 3); symmetric(1, 1) | X; V; N
    linalg.eigvalsh: | M; MM, UPLO="U"; M, "l"
    linalg.svd: X, full_matrices=False | {A(3, 2)/N/A(2, 1, 2, 3)/A(1, 1)/A(4, 1)/A(3, 0)/A(0, 2)}, full_matrices=False;
        M; MM; M, True; X, compute_uv=False; A(2, 3, 2), False, False | V; S
    linalg.qr: A(3, 2) | M; MM; X; N; A(2, 1, 2, 3); A(3, 1), mode="reduced" | V; S; M, "nonsense"
    linalg.pinv: X | M; A(3, 2); N; A(2, 1, 2, 3); X, 1e-9 | V; S
    linalg.lstsq: A(4, 2), A(4, 3) | A(4, 2), A(4); A(4, 2), A(4, 3), rcond=None; M, A(3); X, A(2, 2);
        A(4, 2), [1, 2, 3, 4]; np.eye(4)[:, :2], A(4); [[2, 1], [0, 1], [1, 1]], V | X, V; V, V; MM, V
    linalg.matrix_power: M, 3 | M, {1/2/5/-1}; MM, {3/-2}; a=M, n=4 | X, 2; X, 0; V, 1; M, 2.0
    linalg.norm: X; X, axis=1; X, 1; V, 3 | V; N; S; A(4), {None/1/2/3/2.5/0.5/-1/-2/inf/-inf};
        X, {None/1/2/-inf}, {0/-1}; A(4), {np.float64(3)/np.int64(1)/np.float32(-1)};
        X, {"fro"/-1/inf/-inf/2/-2/"nuc"/np.float64(2)}; N, {None/"fro"/1/-1/inf}, {(0, 1)/(-1, 0)};
        N, {2/-2/"nuc"}, (2, 0); x=N, ord=1, axis=1, keepdims=True; N, "fro", (0, 2), True; N, 1, (2, 1), keepdims=True;
        N, axis=(1,), keepdims=True; X, axis=None, keepdims=True; N, "nuc", (0, -1), True; A(3, 2), -2, keepdims=True |
        {V/N}, "fro"; N, 1; X, {"nonsense"/3/None, (0, 0)/"fro", 0}; V, axis=1; N, axis={(0, 1, 2)/(0, 3)}
    # Functions of this file.
    astype: X, float | S, np.float64
""")
for name in ELEMENTWISE:
    CATALOGUE[name] = elementwise(name) + CATALOGUE.get(name, [])

# Constants: a number that does not change with the Tensor, and no gradient.
CONSTANTS: dict[str, list[Call]] = table("""
    all any argmax argmin count_nonzero: X; X, 0 | X, axis=-1, keepdims=True; X, axis=None
    argsort size: X; X, 0 | X, axis=-1; X, axis=None
    argpartition: X, 1 | X, kth=1, axis=0
    argwhere ndim shape flatnonzero nonzero: X | V
    searchsorted: np.arange(4), X | V, 0.5; [0.0, 1.0], X, side="right"; V, V; V, INTS
    array_equal array_equiv allclose isclose: X, X | X, 1.0; LIST, X
    isin: X, [1.0] | [1.0, 2.0], X; X, X, invert=True
    equal not_equal less less_equal greater greater_equal floor_divide: X, X | X, 1; LIST, X
    logical_and logical_or logical_xor: X, X | X, True; INTS, X
    bitwise_and bitwise_or bitwise_xor: boolean(2, 3), boolean(2, 3); boolean(2, 3), MASK | boolean(2, 3), True
    invert: boolean(2, 3)
    around round: X; X, 1 | X, decimals=2
    ceil fix floor rint trunc sign signbit imag iscomplexobj isrealobj: X | S
    iscomplex isfinite isinf isnan isneginf isposinf isreal logical_not: X | S
    angle: X | S, deg=True
    ones_like zeros_like empty_like: X | S; X, dtype=int; X, shape=2
    result_type: X, X | X, np.float32; X
""")
CALLS = CATALOGUE | CONSTANTS

OF_SECOND = {"relu": lambda x: anp.maximum(x, 0), "sigmoid": lambda x: 1 / (1 + anp.exp(-x))}
OF_SECOND |= {"getitem": operator.getitem, "astype": lambda x, to: 1.0 * x, "positive": lambda x: 1.0 * x}
FUNCTIONS = sorted(get_overridable_numpy_array_functions() | get_overridable_numpy_ufuncs(), key=str)
MADE = [inspect.getclosurevars(f).nonlocals.get("row") for f in vars(tinygrad_lite).values() if inspect.isfunction(f)]
# The rows as they are before any test adds some, and those that defvjp made.
ROWS = tinygrad_lite._table | {row.function: row for row in MADE if isinstance(row, tinygrad_lite._Function)}
# Within, nodes forget at any size the arrays that their rules do not read.
forgetful = functools.partial(mock.patch.object, tinygrad_lite, "_LARGE", 0)


def params(catalogue: Any) -> list[Any]:
    return [pytest.param(n, call, id=f"{n}({call})") for n, calls in catalogue.items() for call in calls]


def leaves_of(arrays: Any, dtype: Any = float) -> list[Any]:
    return [leaf(a, dtype) if is_float(a) else a for a in arrays]


def required(xs: Any) -> list[Any]:
    return [x for x in xs if isinstance(x, Tensor)]


def weights_of(out: Any) -> list[Any]:
    rng = np.random.default_rng(1)
    return [rng.uniform(0.5, 1.5, np.shape(x)) for x in tree_leaves(out)]


def data_of(x: Any) -> Any:
    return x.data if isinstance(x, Tensor) else x


def total(out: Any, weights: Any, xp: Any = np) -> Any:
    """The weighted sum of all results."""
    return sum([xp.sum(x * w.astype(x.dtype)) for x, w in zip(tree_leaves(out), weights, strict=True) if x.size])


def assert_same(out: Any, plain: Any) -> None:
    """The results on Tensors are NumPy's own: the structure, and in it shape, dtype and values."""
    if isinstance(plain, (list, tuple)):
        assert type(out) is type(plain)
        assert len(out) == len(plain)
    for x, y in zip(tree_leaves(out), tree_leaves(plain), strict=True):
        assert (x.shape, x.dtype) == (np.shape(y), y.dtype)
        np.testing.assert_allclose(data_of(x), y, rtol=1e-12, atol=1e-14)


def backward(name: str, call: Call, arrays: Any, dtype: Any = float, **options: Any) -> tuple[Any, list[Any]]:
    """The results of a call on Tensors and the gradients of their weighted sum."""
    xs = leaves_of(arrays, dtype)
    out = call.of(named(name), xs)
    assert any(x.requires_grad for x in required(tree_leaves(out)))
    has_constants = name in ("linalg.slogdet", "linalg.lstsq")  # a sign, and a rank
    assert all(x.requires_grad for x in required(tree_leaves(out))) or has_constants
    if sum(x.size for x in tree_leaves(out)):
        total(out, weights_of(out)).backward(**options)
    return out, [np.zeros_like(x.data) if x.grad is None else x.grad for x in required(xs)]


def central_differences(f: Any, arrays: list[Any], weights: Any, eps: float = 1e-6) -> list[Any]:
    """The gradient of the weighted sum of f by (f(x + eps) - f(x - eps)) / (2 eps), entry by entry."""
    gradients = [np.zeros(np.shape(array)) for array in arrays]
    for i, gradient in enumerate(gradients):
        for entry, sign in itertools.product(np.ndindex(gradient.shape), (1, -1)):
            moved = [np.array(a, dtype=float) for a in arrays]
            moved[i][entry] += sign * eps
            gradient[entry] += sign * np.sum(weights * np.asarray(f(*moved))) / (2 * eps)
    return gradients


def of_second_engine(name: str, call: Call, arrays: list[Any]) -> list[Any] | None:
    """The gradients by autograd, if it knows the call."""

    def second(x: Any, i: int) -> Any:
        return total(call.of(function, [*arrays[:i], x, *arrays[i + 1 :]]), weights, anp)

    plain = call.of(named(name), arrays)
    weights = weights_of(plain)
    with contextlib.suppress(Exception):  # of any kind, for what it does not know
        function = OF_SECOND.get(name) or operator.attrgetter(name)(anp)
        if call.has_second and all(map(np.size, tree_leaves(plain))):
            return [autograd.grad(second)(x, i) for i, x in enumerate(arrays) if is_float(x)]
    return None


def check(name: str, call: Call, seed: int = 0) -> None:
    """A call on Tensors is NumPy's; first order agrees with central differences and the second engine; second order,
    along a random direction, with central differences; and no rule reads an array that may be forgotten."""
    arrays = call.draw(seed)
    plain, xs = call.of(named(name), arrays), [a for a in arrays if is_float(a)]
    weights, n = weights_of(plain), (*range(len(xs)),)
    out, gradients = backward(name, call, arrays)
    assert_same(out, plain)

    def flat(*xs: Any) -> Any:
        each = iter(xs)
        return total(call.of(named(name), [next(each) if is_float(a) else a for a in arrays]), weights)

    def slopes(*xs: Any) -> Any:  # a number that depends on all gradients
        return sum([np.sum(g * (g + i)) for i, g in enumerate(grad(flat, n)(*xs))])

    for x, g, numeric in zip(xs, gradients, central_differences(flat, xs, 1.0), strict=True):
        assert type(g) is np.ndarray
        assert (g.shape, g.dtype) == (x.shape, np.float64)
        np.testing.assert_allclose(g, numeric, rtol=1e-5, atol=1e-7)
    for g, h in zip(gradients, of_second_engine(name, call, arrays) or gradients, strict=True):
        np.testing.assert_allclose(g, h, rtol=1e-10, atol=1e-12)
    with forgetful():
        found, bends = grad(flat, n)(*xs), grad(slopes, n)(*xs)
    for g, h in zip(found, gradients, strict=True):
        np.testing.assert_allclose(g, h, rtol=1e-13, atol=1e-15)
    rng = np.random.default_rng(2)
    along = [(x, rng.normal(size=x.shape)) for x in xs]
    numeric = central_differences(lambda step: slopes(*[x + step * v for x, v in along]), [0.0], 1.0)[0]
    exact = sum([np.sum(g * v) for g, (_, v) in zip(bends, along, strict=True)])
    np.testing.assert_allclose(exact, numeric, rtol=2e-4, atol=1e-5)


def nodes_of(*tensors: Any) -> list[Any]:
    """The nodes (order, row, parents, values, out, options) of the graphs that the Tensors come from."""
    found, waiting = {}, [t._node for t in tensors]
    for node in waiting:  # and for those that are added
        if node is not None and node[0] not in found:
            found[node[0]] = node
            waiting.extend(node[2] if node[1] else ())
    return [*found.values()]


# --- The sections of the file -----------------------------------------------------------------------------------------
# A heart that could be used alone, and layers of which none is named by what stands above it.

SOURCE = (HERE / "tinygrad_lite.py").read_text()
HEART = ["Recording", "Tensor", "Rules", "Backward", "SGD"]
LAYERS = ["NumPy's functions", "Gradients of functions", "Tools", "jit"]


def up_to(section: str) -> str:
    """The text of the file that stands above the banner of a section."""
    return SOURCE[: SOURCE.index(f"# --- {section} ---")]


def imported(source: str) -> Any:
    """A module of its own that is made of such a text."""
    module = types.ModuleType("cut_off")
    module.__file__ = "cut_off.py"
    exec(compile(source, module.__file__, "exec"), vars(module))
    return module


def lines_of_code(source: str) -> int:
    """As many as are no blank lines, comments or docstrings."""
    expressions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr)]
    docstrings = {node.lineno for node in expressions if isinstance(node.value, ast.Constant)}
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.string.strip()]
    of_code = [t for t in tokens if t.type != tokenize.COMMENT and t.start[0] not in docstrings]
    return len({line for t in of_code for line in range(t.start[0], t.end[0] + 1)})


def test_sections_stand_in_the_order_of_the_design_and_name_no_library_of_arrays():
    assert "dask" not in SOURCE.lower()
    assert re.findall(r"^# --- (.*?) -*$", SOURCE, re.MULTILINE) == HEART + LAYERS


@pytest.mark.parametrize("section", LAYERS)
def test_what_stands_above_a_section_names_nothing_of_it(section):
    undefined_names = [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F821", "-"]
    subprocess.run(undefined_names, input=up_to(section), text=True, check=True)
    imported(up_to(section))


def test_heart_alone_does_the_example_of_micrograd():
    heart = imported(up_to("NumPy's functions"))
    a, b = [heart.Tensor(number, requires_grad=True) for number in (-4.0, 2.0)]
    c, d = a + b, a * b + b**3
    c += c + 1
    c += 1 + c + (-a)
    d += d * 2 + (b + a).relu()
    d += 3 * d + (b - a).relu()
    f = (c - d) ** 2
    g = f / 2.0 + 10.0 / f
    g.backward()
    # The numbers of https://github.com/karpathy/micrograd
    assert (f"{g.item():.4f}", f"{a.grad:.4f}", f"{b.grad:.4f}") == ("24.7041", "138.8338", "645.5773")


def trained(engine: Any, dtype: Any) -> list[Any]:
    """The last loss and the parameters of a small network, after training with an engine, with all that a heart has."""
    rng = np.random.default_rng(0)
    X, W = rng.normal(size=(50, 3)).astype(dtype), rng.normal(size=(3, 4)).astype(dtype)
    starts = W, np.zeros(4, dtype), W[:1].T, dtype(0)
    W, b, V, c = parameters = [engine.Tensor(start, requires_grad=True) for start in starts]
    optimizer, losses = engine.SGD(parameters, lr=0.1, momentum=0.9), []
    for _ in range(100):
        optimizer.zero_grad()
        loss = ((np.tanh(X @ W + b) @ V + c - np.sin(X[:, :1])) ** 2).mean()
        loss += 1e-4 * (np.exp(-abs(W)).sum() + (1 - b / 2).relu().log().mean() + (V**3).sum() + 2**c)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10
    assert {p.dtype for p in parameters} == {np.dtype(dtype)}
    with engine.no_grad():
        assert not (W * 2).requires_grad
    return [loss.data, *[p.data for p in parameters]]


def differentiated(engine: Any) -> list[Any]:
    """What the layers above jit make of a function."""
    x = np.array([0.5, -1.0, 2.0])

    def f(x: Any) -> Any:
        return np.sum(np.sin(x) * np.sort(x) ** 2) + np.linalg.norm(np.concatenate([x, x[:1]]))

    assert engine.gradcheck(lambda x: engine.sigmoid(x) * engine.relu(x), x)
    infinite = pytest.raises(FloatingPointError, match=r"np\.sqrt of shape \(\) made nan or infinity")
    with np.errstate(all="ignore"), infinite, engine.detect_anomaly():
        engine.grad(np.sqrt)(np.float64(0.0))
    graph = engine.to_dot(engine.Tensor(3.0, requires_grad=True) * 2)
    return [engine.value_and_grad(f)(x), engine.hessian(f)(x), engine.jvp(f, (x,), (x,)), graph]


@pytest.mark.parametrize(("section", "program"), [
    *[("NumPy's functions", functools.partial(trained, dtype=dtype)) for dtype in (np.float32, np.float64)],
    ("jit", differentiated),
])  # fmt: skip
def test_what_stands_above_a_section_does_alone_what_it_does_in_the_whole_file(section, program):
    assert_alike(program(imported(up_to(section))), program(tinygrad_lite), rtol=0, atol=0)


def test_the_files_keep_to_their_budgets_of_lines():
    assert lines_of_code(up_to("NumPy's functions")) - lines_of_code(up_to("Recording")) <= 400
    assert lines_of_code(SOURCE) <= 1450
    for script, most in (("train_linear", 130), ("train_gender", 150)):
        text = (HERE / f"{script}.py").read_text()
        assert lines_of_code(text) <= most
        assert not re.search("^(from|import) train_", text, re.MULTILINE)


# --- Size -------------------------------------------------------------------------------------------------------------
# Data of 80 MB that nobody ever makes: neither a graph nor the making of it may hold anything of that size.

BIG_STEPS = """
    ((X @ w + b[0]) ** 2).mean(); X.sum(); X.mean(0).sum(); X.max(1).sum(); X.min(); np.prod(X[:64]); (X + b).sum()
    X.var(); X.std(0).sum(); (X / X.std(0)).sum(); np.average(X, axis=0).sum(); np.linalg.norm(X)
    np.cumsum(X, 1).sum(); np.where(X > 0, X, b).sum(); np.clip(X, 0, b).sum(); np.maximum(X, 0).sum()
    X[::2, 3:].sum(); X[5] @ w; X.T[..., 1].sum(); np.einsum('ij->', X); np.einsum('ij,j->', X, w)
    np.einsum('ij->j', X) @ w; np.tensordot(X, w, 1).sum(); (w * X.T.T).sum(); np.concatenate([X, X]).sum()
    np.vstack([X, X]).sum(); np.hstack([X, X]).sum(); np.stack([X, X]).sum(); X.reshape(-1).sum()
    np.expand_dims(X, 1).sum(); X.swapaxes(0, 1).sum(); np.outer(X[:, 0], w).sum(); np.roll(X, 1).sum()
    """


@pytest.mark.parametrize("case", shared_out(calls(BIG_STEPS)))
def test_neither_graphs_nor_their_making_hold_anything_of_the_size_of_the_data(case):
    leaves = {"X": Tensor(da.ones((10_000, 1_000), chunks=(2_500, 500)), requires_grad=True)}
    leaves |= {name: leaf(np.ones(1_000)) for name in ("w", "b")}
    with traced_memory():
        with nothing_is_fetched():
            out = eval(case, {"np": np}, leaves)
            out.backward()
        graph = cloudpickle.dumps([out.data, *[t.grad for t in leaves.values()]])
        peak = tracemalloc.get_traced_memory()[1]
    assert type(leaves["X"].grad) is da.Array
    assert len(graph) < 500_000
    assert peak < 20_000_000


# --- The engine -------------------------------------------------------------------------------------------------------
def in_threads(work: Any, count: int) -> None:
    """Call work(0), work(1) and so on at the same time, with many changes from one to another, and wait for all."""
    with contextlib.ExitStack() as stack:
        stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(1e-6)
        for n in range(count):
            thread = threading.Thread(target=work, args=(n,))
            thread.start()
            stack.callback(thread.join)


@pytest.fixture
def no_collector() -> Any:
    """What goes then goes by reference count alone."""
    gc.disable()
    yield
    gc.enable()


def test_second_backward_accumulates_on_leaves_only_in_arrays_to_write_into():
    x = leaf(2.0)
    y = x * x
    z = y * y
    for result, expected in ((z, 32.0), (z, 64.0), (y, 68.0), (x, 69.0)):
        result.backward()
        assert (type(x.grad), x.grad, y.grad) == (np.ndarray, expected, None)
    x.grad[...] = 5.0
    assert x.grad == 5.0


def test_optimizer_step_between_forward_and_backward_changes_no_gradient():
    w, b = leaf([2.0, 3.0]), leaf(1.0)
    loss, optimizer = (w * w * b).sum(), SGD([w, b], lr=0.5)
    for expected in ([2.0, 3.0], [2 - 0.5 * 4, 3 - 0.5 * 6]):
        np.testing.assert_array_equal(w.data, expected)
        optimizer.zero_grad()
        assert (w.grad, b.grad) == (None, None)
        loss.backward()
        assert (w.grad.tolist(), b.grad) == ([4.0, 6.0], 13.0)
        optimizer.step()


def test_a_chain_of_very_many_operations_needs_no_recursion():
    x = leaf(1.0)
    y = x
    for _ in range(1_000_000):
        y = y * 1.000001
    y.backward()
    assert x.grad == pytest.approx(1.000001**1_000_000, rel=1e-9)
    del y  # freeing the chain must not recurse either


@pytest.mark.parametrize(("size", "unread"), [(3, ""), (100_000, "uv")])
def test_graphs_keep_no_large_array_that_no_rule_reads_and_go_without_the_garbage_collector(size, unread, no_collector):
    w = leaf(1.0)
    u = w * np.ones(size)
    v = u + 1.0
    h = np.tanh(v)
    loss = (h * h).mean()
    tensors = {"u": u, "v": v, "h": h, "loss": loss}
    references = {name: (weakref.ref(t), weakref.ref(t.data)) for name, t in tensors.items()}
    del u, v, h, tensors
    assert {references[name][1]() for name in unread} <= {None}
    loss.backward()
    assert w.grad == pytest.approx(2 * math.tanh(2) / math.cosh(2) ** 2, rel=1e-12)
    del loss
    assert {reference() for pair in references.values() for reference in pair} == {None}


def test_joining_ever_more_arrays_leaves_nothing_behind():
    def join(counts: Any) -> None:
        with forgetful():
            for n in counts:
                np.stack([leaf(1.0)] * n).sum().backward()

    join(range(1, 20))
    with traced_memory():
        join(range(20, 150))
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 100_000  # a row for each number would take twice as much


def test_gradients_of_elements_add_up_in_one_array_however_often_an_array_is_indexed(monkeypatch):
    x, weights = np.random.default_rng(0).normal(size=(2, 60, 5))
    made, zeros = [], np.zeros
    monkeypatch.setattr(np, "zeros", lambda shape, *rest: made.append(shape) or zeros(shape, *rest))

    def f(x: Any) -> Any:  # a recurrent network reads its steps so
        pairs = [(x[i] * weights[i], x[i, 1:3] * x[[i, i], 0]) for i in range(60)]
        return sum([a.sum() + b.sum() for a, b in pairs]) + (x * x).sum()

    gradient = grad(f)(x)
    assert made == [(60, 5)]
    monkeypatch.undo()
    np.testing.assert_allclose(gradient, autograd.grad(f)(x), rtol=1e-13)
    with forgetful():  # and what is recorded for a second time has the same to say
        second = grad(lambda x: (grad(f)(x) * weights).sum())(x)
    expected = autograd.grad(lambda x: (autograd.grad(f)(x) * weights).sum())(x)
    np.testing.assert_allclose(second, expected, rtol=1e-12)


@pytest.mark.parametrize("order", [1, -1])
def test_gradients_of_elements_and_of_whole_arrays_add_up_in_either_order_and_over_calls(order):
    def f(t: Any, other: Any) -> Any:
        return sum([np.sum(t[1] * 2), np.sum(t * other)][::order])

    t, lazy, of_row = leaf(np.random.default_rng(0).normal(size=(3, 4))), da.ones((3, 4), chunks=2) * 3, [[0], [2], [0]]
    for times in (1, 2):
        f(t, t).backward()
        np.testing.assert_allclose(t.grad, times * (2 * t.data + of_row))
    with nothing_is_fetched():
        gradient = grad(f)(t.data, lazy)
    np.testing.assert_array_equal(gradient, np.full((3, 4), 3.0) + of_row)


def test_gradients_that_nobody_else_holds_are_not_copied_and_no_large_array_is_kept_for_a_small_view():
    def rule(g, out, x):
        made.append(id(array := g * 3.0))
        return array

    made: list[int] = []
    assert [id(grad(lambda x: np.sum(defvjp(lambda x: 3 * x, rule)(x)))(np.ones(100_000)))] == made
    assert grad(lambda x: np.sum(x.T * KEPT))(np.ones((4, 2))).base is not None
    assert grad(lambda x: np.sum(np.concatenate([x, np.ones(1000)]) ** 2))(np.ones(2)).base is None


KEPT = np.full((2, 4), 3.0)  # by somebody who has it besides


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("f", [
    *[lambda x: x, lambda x: x.sum() * KEPT, lambda x: x.T.T * KEPT, lambda x: np.ravel(x).reshape(2, 4)],
    *[lambda x, rule=rule: defvjp(lambda x: 2 * x, rule)(x) for rule in (
        *[lambda g, out, x: KEPT, lambda g, out, x: KEPT[:, ::-1], lambda g, out, x: x],
        lambda g, out, x: np.broadcast_to(g * 2, (2, 4)),  # which is read-only
    )],
])  # fmt: skip
def test_gradients_are_arrays_of_their_own_wherever_they_come_from(f, create_graph):
    x, y = [Tensor(np.broadcast_to(1.0, (2, 4)), requires_grad=True) for _ in range(2)]
    given = np.ones((2, 4))
    (f(x) + f(y)).backward(given, create_graph)
    arrays = [data_of(x.grad), data_of(y.grad), x.data, y.data, given, KEPT]
    expected = np.array(arrays)
    for array in (*arrays[:2], *expected[:2]):
        array[0, 0] += 5
    np.testing.assert_array_equal(arrays, expected)


@pytest.mark.parametrize("size", [3, 20_000])
@pytest.mark.parametrize(("f", "rule"), [(np.square, lambda *args: args[0] * 2 * args[2]), (np.exp, np.where)])
def test_a_rule_that_does_not_tell_its_parameters_keeps_all_it_may_read(f, rule, size):
    own, x = defvjp(lambda x: f(x), rule), np.linspace(1, 3, size)  # np.where(g, out, x) is out
    np.testing.assert_array_equal(grad(lambda x: own(x).sum())(x), grad(lambda x: f(x).sum())(x))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 1), (2, 1), (1, 3), (2, 3), (1, 1, 1)])
@pytest.mark.parametrize(("total", "weight"), [
    (lambda t: t.sum(), lambda out: 1),
    (lambda t: t.mean(), lambda out: 1 / out.size),
    (lambda t: t.mean(-1, keepdims=True).sum(), lambda out: 1 / out.shape[-1]),
    (lambda t: (t.sum(0) * [2.0, 2.0, 2.0]).sum(), lambda out: 2),
    (lambda t: np.reshape(t, -1).sum() + t.mean(), lambda out: 1 + 1 / out.size),
    (lambda t: np.where(True, t, 0.0).sum() * 3, lambda out: 3),
])  # fmt: skip
def test_a_gradient_that_is_one_number_counts_all_that_broadcasting_made_of_an_argument(shape, total, weight):
    # On the way it may be smaller than the array that it belongs to: the sum over what was stretched is of all of it.
    x, X = leaf(np.ones(shape)), np.zeros((2, 3))
    out = x + X
    total(out).backward()
    times = out.size / max(x.size, 1)
    np.testing.assert_allclose(x.grad, np.full(shape, times * weight(out)), rtol=1e-14)
    assert (x.grad.shape, x.grad.flags.writeable) == (shape, True)
    y = grad(lambda x: total((x + X) + (x * 2 - X)))(np.ones(shape))
    np.testing.assert_allclose(y, np.full(shape, 3 * times * weight(out)), rtol=1e-14)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("after", "given"), [
    *[(lambda t: (t * 2).sum(), 1), (lambda t: t.mean() * 3, 1), (lambda t: (t + 1).sum(0).mean(), 1)],
    *[(lambda t: t.T.sum(), 1), (lambda t: (np.transpose(t) * np.arange(6.0).reshape(3, 2)).sum(), 1)],
    (lambda t: (t[:, ::-1] * np.arange(6.0).reshape(2, 3)).sum(), 1),
    (lambda t: defvjp(lambda x: x.sum(), lambda g, out, x: np.broadcast_to(g, x.shape))(t), 1),
    (lambda t: defvjp(lambda x: x.sum(0), lambda g, out, x: np.broadcast_to(g, x.shape))(t)[0], 1),
    *[(lambda t: t, given) for given in (np.broadcast_to(1.0, (2, 3)), np.ones((3, 2)).T, np.ones((4, 6))[::2, ::2])],
], ids=range(11))  # fmt: skip
def test_rules_of_ones_own_get_arrays_as_like_new_whatever_comes_after_them(after, given, dtype):
    def rule(g, out, x):
        seen.append((g.flags.carray, g.shape, out.shape, g.dtype, all(g.strides)))
        memoryview(g.astype(float) if dtype == np.float16 else g).cast("B")[0]
        return g * 2

    seen, x, y = [], *[leaf(np.arange(6.0).reshape(2, 3), dtype) for _ in range(2)]
    after(defvjp(lambda x: 2 * x, rule)(x)).backward(given)
    after(y * 2).backward(given)
    np.testing.assert_array_equal(x.grad, y.grad)
    assert seen == [(True, (2, 3), (2, 3), dtype, True)]
    inlined = defvjp(lambda x: 2 * x, lambda g, out, x: g * 2)
    np.testing.assert_array_equal(jit(grad(lambda x: (after(inlined(x)) * given).sum()))(x.data), y.grad)


def test_a_function_with_a_rule_that_fails_is_called_once_and_errors_of_a_programs_own_stay_what_they_are():
    def no(x, error=ValueError("no")):  # noqa: B008
        calls.append(x)
        raise error

    calls, function, x = [], defvjp(no, lambda g, out, x, error=None: g), leaf([1.0, 2.0])
    for args, options, error, message in (
        ((x,), {}, ValueError, r"no of shapes \(2,\): no$"),
        ((x,), {"error": json.JSONDecodeError("no", "", 3)}, json.JSONDecodeError, r"^no: line 1 column 4"),
        (([1.0], leaf(2.0)), {}, TypeError, "no derivative rule for argument 1"),
        ((x,), {"y": 1}, TypeError, "y"),
    ):
        calls.clear()
        with pytest.raises(error, match=message):
            function(*args, **options)
        assert len(calls) <= 1


def test_second_derivatives_through_arrays_of_nothing_are_zero():
    def slopes(w: Any) -> Any:
        return grad(lambda x: (x * w).mean() ** 2)(np.zeros(0))  # the loss is nan

    with pytest.warns(RuntimeWarning):
        assert (slopes(1.5).shape, grad(lambda w: slopes(w).sum())(1.5)) == ((0,), 0.0)


def test_no_grad_is_for_one_thread_nests_ends_and_decorates():
    x, elsewhere = leaf(1.0), []
    with no_grad():
        in_threads(lambda _: elsewhere.append((x * 2).requires_grad), 1)
        with pytest.raises(KeyError), no_grad():
            raise KeyError
        assert [t.requires_grad for t in (x * 2, np.exp(x), leaf(1.0))] == [False, False, True]
    double = no_grad()(lambda t: t * 2)
    assert [double(x).requires_grad, double(x).requires_grad, (x * 2).requires_grad] == [False, False, True]
    assert elsewhere == [True]


def test_threads_differentiate_functions_and_join_ever_more_arrays_at_the_same_time():
    def work(n: int) -> None:
        results[n] = [grad(grad(lambda x: x**4 * n))(float(k)).item() for k in range(50)]
        for count in counts:
            leaves = [leaf(np.ones(20_000)) for _ in range(count)]
            np.concatenate(leaves).sum().backward()
            np.einsum(",".join(["i"] * count) + "->", *leaves).backward()
            results[n].append(sum([t.grad.sum() for t in leaves]))

    results, counts = {}, (2, 12, 3, 25, 4)
    in_threads(work, 4)
    sums = [40_000 * count for count in counts]
    assert results == {n: [12.0 * k * k * n for k in range(50)] + sums for n in range(4)}


def test_what_other_threads_begin_while_one_is_on_the_way_back_does_not_disturb_it():
    with contextlib.ExitStack() as at_the_end:

        def rule(g, *_):
            in_threads(lambda _: at_the_end.enter_context(no_grad()), 1)
            return g

        assert grad(lambda x: defvjp(lambda x: x + 0, rule)(x * 2))(1.0) == 2.0


def test_threads_that_come_to_the_same_leaf_lose_nothing():
    x = leaf(np.ones(20_000))
    losses = [(x * i).sum() for i in range(800)]
    in_threads(lambda k: [loss.backward() for loss in losses[k::8]], 8)
    np.testing.assert_array_equal(x.grad, np.full(20_000, sum(range(800))))


@pytest.mark.parametrize("within", [contextlib.nullcontext, no_grad])
@pytest.mark.parametrize(("f", "orders"), [(lambda x, xp: xp.sin(x) * x**4, 4), (lambda x, xp: x**2, 3)])
def test_create_graph_gives_derivatives_of_any_order_at_the_values_that_forward_saw_also_in_no_grad(f, orders, within):
    x, expected = leaf(2.0), lambda x: f(x, anp)
    y = f(x, np)
    x.data = 100.0
    for _ in range(orders):
        with within():
            y.backward(create_graph=True)
        y, x.grad = x.grad, None
        expected = autograd.grad(expected)
        assert isinstance(y, Tensor)
        assert y.item() == pytest.approx(expected(2.0), rel=1e-12, abs=0)


def test_backward_with_create_graph_takes_a_tensor_as_gradient():
    x, u = leaf([1.0, 2.0]), leaf([1.0, 1.0])
    (x**3).backward(u, create_graph=True)
    g, x.grad = x.grad, None
    (g @ np.array([1.0, 10.0])).backward()
    np.testing.assert_array_equal([u.grad, x.grad], [[3.0, 120.0], [6.0, 120.0]])


# --- Tensor -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [2.5, 3, True, np.float32(2), np.array(4.0), [[1, 2], [3, 4]], np.arange(3), []])
def test_data_is_always_an_array_with_numpys_dtype(data):
    t = Tensor(data)
    assert type(t.data) is np.ndarray
    assert t.dtype == t.data.dtype == np.asarray(data).dtype
    assert (t.shape, t.ndim, t.size) == (np.shape(data), np.ndim(data), np.size(data))
    assert t.data is t.data


@pytest.mark.parametrize("x", [np.arange(3.0), np.array(2.0), np.arange(6.0)[::2], np.asfortranarray(np.ones((2, 3)))])
def test_arrays_are_not_copied_and_changes_in_place_are_seen(x):
    t = Tensor(x, requires_grad=True)
    assert t.data is x
    t.data[...] = 5.0
    assert ((t * 2).data == 10.0).all()
    t.data -= 1.0
    assert ((t * 2).data == 8.0).all()
    (t * t).sum().backward()
    np.testing.assert_array_equal(t.grad, 2 * x)


def test_data_and_grad_can_be_set_and_are_cast_and_the_gradient_is_copied():
    t, u = leaf([1.0, 2.0], np.float32), Tensor([1.0, 2.0])
    for data in (np.array([3.0, 4.0]), [5, 6]):
        t.data = data
        np.testing.assert_array_equal(t.data, np.float32(data), strict=True)
    for gradient in ([1, 2], u):
        t.grad = gradient
        t.sum().backward()
        np.testing.assert_array_equal(t.grad, np.float32([2, 3]), strict=True)
        t.grad[0] = 9.0
    assert u.data[0] == 1.0


def test_a_gradient_that_is_a_tensor_can_be_set_again_and_copied():
    x = leaf([3.0, 4.0])
    (x**2).sum().backward(create_graph=True)
    np.testing.assert_array_equal(copy.deepcopy(x).grad, [6.0, 8.0])
    x.grad = x.grad / np.linalg.norm(x.grad)
    assert isinstance(x.grad, Tensor)
    np.testing.assert_allclose(x.grad.data, [0.6, 0.8])


def test_requires_grad_of_a_leaf_can_be_set_at_any_time():
    t = Tensor([1.0])
    t.requires_grad = True
    y = (t * 2).sum()
    for expected in (2.0, 4.0):
        y.backward()  # which was recorded before
        t.requires_grad = False
        assert (t.grad, (t * 2).requires_grad) == (None, False)
        t.requires_grad = True
        assert t.grad == expected
    t.requires_grad = False
    t.grad = None
    t.requires_grad = True
    assert t.grad is None


OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow]
CONSTANT = [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne, operator.floordiv]
ALL_FLOATS = [*FLOATS, np.longdouble]
OTHERS = [2, 2.0, True, np.int64(2), np.array(2.0), np.array([1.0, 2.0, 3.0]), [1, 2, 3], np.arange(1, 7).reshape(2, 3)]
OTHERS += [pd.Series([1.0, 2, 3]), pd.Series([1, 2, 3], [7, 8, 9]), pd.DataFrame([[1.0, 2, 3]], columns=[*"abc"])]
OTHERS += [*[dtype(2) for dtype in ALL_FLOATS], *[leaf([4, 3, 2], dtype) for dtype in ALL_FLOATS]]


@pytest.mark.parametrize("is_left", [True, False])
@pytest.mark.parametrize("dtype", ALL_FLOATS)
@pytest.mark.parametrize("other", OTHERS, ids=lambda other: repr(other).replace("\n", " "))
def test_operators_take_all_kinds_of_operands_on_either_side_with_numpys_dtypes(other, dtype, is_left):
    other = copy.deepcopy(other)  # as gradients add up
    plain = data_of(other) if isinstance(other, (Tensor, bool, int, float)) else np.asarray(other)
    for op, x in itertools.product([*OPERATORS, *CONSTANT], (np.array([1, 2, 4], dtype), np.array(3, dtype))):
        f, g = [lambda a, b=b, op=op: op(a, b) if is_left else op(b, a) for b in (other, plain)]
        for t in (leaf(x, dtype), Tensor(x)):
            out, expected = f(t), g(x)
            assert (type(out), type(out.data)) == (Tensor, np.ndarray)
            np.testing.assert_array_equal(out.data, expected, strict=True)
            assert out.requires_grad == (op in OPERATORS and (t.requires_grad or isinstance(other, Tensor)))
        if op in OPERATORS:
            (found,), (slopes,) = grads(f, x)[1], grads(f, x.astype(float))[1]
            np.testing.assert_allclose(slopes, central_differences(g, [x], 1.0)[0], rtol=1e-6)
            np.testing.assert_allclose(found, slopes.astype(dtype), max(np.finfo(dtype).eps, 1e-15) * 4, strict=True)
    assert not isinstance(other, Tensor) or other.grad.dtype == other.dtype


WITH_PANDAS = """
    Tensor(frame); Tensor(column); np.multiply(frame, t); t - column; t[column > 1]; np.where(column > 1, t, column)
    t.clip(column, 2 * column); Tensor(frame) @ t; t @ frame; ONES[:, :2] @ t; t @ ONES[:, :2]
    """


@pytest.mark.parametrize("expression", calls(WITH_PANDAS))
def test_a_tensor_never_holds_a_pandas_object(expression):
    t, frame = np.array([1.5, 2.0]), pd.DataFrame({"a": [1.0, 2.0], "b": [3, 4]})
    out = eval(expression, globals(), {"t": leaf(t), "frame": frame, "column": frame["a"]})
    plain = eval(expression, globals(), {"t": t, "frame": frame.to_numpy(), "column": frame["a"].to_numpy()})
    assert type(out.data) is np.ndarray
    np.testing.assert_array_equal(out.data, data_of(plain))


def softplus(x: Any, scale: Any = 1.0) -> Any:
    assert type(x) is not Tensor  # a function with a rule is given arrays
    return np.log1p(np.exp(-abs(x))) + np.maximum(x, 0) * scale


SOFTPLUS = defvjp(softplus, lambda g, out, x, scale=1.0: g * (1 / (1 + np.exp(-x)) + (scale - 1) * (x > 0)))
T, LARGE = leaf([1.0, 2.0]), np.linspace(0.5, 2, 20_000)
LARGE_INTEGERS = np.int64(2**62), np.int32(2e9), np.uint8(200)
FACTS = calls("""
    format(leaf(3.14159), ".2f") == "3.14"; format(leaf(2.0)) == "2.0"; len(T) == 2; format(T, "") == str(T)
    repr(leaf(2.0)) == "Tensor(2., requires_grad=True)"; str(Tensor([1, 2], dtype=float)) == "Tensor([1., 2.])"
    float(Tensor(2.5)) == 2.5; int(Tensor(2.5)) == 2; math.exp(Tensor(0.0)) == 1.0; leaf([[2.5]]).item() == 2.5
    bool(leaf(0.0)) is False; np.asarray(Tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
    np.array(Tensor([1.0, 2.0]), dtype=np.float32).dtype == np.float32
    (T == None) is False; (T != "a") is True; T in set([T]); hash(T) != hash(leaf([1.0, 2.0]))
    ((T > 0) & (T < 2)).data.tolist() == (~(T > 1)).data.tolist() == [True, False]
    T[Tensor([0, 0])].data.tolist() == [1.0, 1.0]; [10, 20, 30][Tensor(1)] == 20; [x.item() for x in T] == [1.0, 2.0]
    grad(lambda x: x[x > 1].sum())(np.array([1.0, 2.0, 3.0])).tolist() == [0.0, 1.0, 1.0]
    (operator.imul(T, 2) is T, T.data.tolist(), grad(lambda x: operator.imul(x, 2))(3.0)) == (False, [1.0, 2.0], 2.0)
    T.astype(np.float32).dtype == np.float32; not T.astype(int).requires_grad; not (Tensor(1.0) * 2).requires_grad
    grad(lambda x: (x.astype(np.float64) * np.float64(0.1)).sum())(np.float32([1, 2])).dtype == np.float32
    grad(np.sum)(ONES).flags.writeable; not np.shares_memory(jvp(lambda x: x, (ONES,), (ONES,))[0], ONES)
    not np.shares_memory(*grad(lambda x, y: (x + y).sum(), (0, 1))(ONES, ONES))
    grad(np.max)(np.array([1.0, nan, nan])).tolist() == [0.0, 0.5, 0.5]
    grad(lambda x: x.clip(0, 2).sum())(np.array([nan, 1.0])).tolist() == [1.0, 1.0]
    grad(np.mean)(np.ones(70_000, np.float16))[0] == np.float16(1 / 70_000)
    gradcheck(lambda a, b: np.linalg.pinv(a @ b), LEFT[:4], RIGHT)  # which is of rank 2
    gradcheck(lambda a, b, c: np.linalg.lstsq(a @ b, c)[0], LEFT[:4], RIGHT, [0.0, 1.0, 4.0, 9.0])
    all([math.isclose(grad(np.arctan2)(float(n), n) * n, 0.5) for n in LARGE_INTEGERS])
    all([math.isclose(grad(np.arctan2, 1)(n, float(n)) * n, -0.5) for n in LARGE_INTEGERS])
    leaf([1.0, 3.0], np.float32).var(ddof=np.int64(1)).dtype == np.float32; setattr(Tensor(1.0), "grad", None) is None
    """)
# Of large arrays; and of rules of one's own, which live as long as a graph, are never bypassed, are not asked for
# constants, and may be of several arguments, of functions in C and of keywords.
FACTS += calls("""
    np.allclose(grad(lambda x: grad(lambda x: (x**3).sum())(x) @ LARGE**2)(LARGE), 6 * LARGE**3, 1e-12, 0)
    np.allclose(jvp(lambda x: (x**3).sum(), (LARGE,), (1 / LARGE,))[1], 3 * np.sum(LARGE), 1e-12, 0)
    np.array_equal(jacobian(lambda x: np.stack([x.sum(), x @ LARGE]))(LARGE), [np.ones(20_000), LARGE])
    grad(lambda x: (defvjp(lambda x: x * x, lambda g, out, x: g * 2 * x)(x), gc.collect())[0])(3.0) == 6.0
    grad(lambda x: defvjp(lambda x: np.sign(x), lambda g, out, x: g)({x/x=x}))(0.5) == 1.0
    grad(lambda x: defvjp(lambda x, y: x + y, lambda g, *_: g, lambda *_: 1 / 0)(x, {2.0/Tensor(2.0)}))(1.0) == 1.0
    gradcheck(defvjp(lambda a, b: np.r_[a, b], lambda g, *_: g[:2], lambda g, *_: g[2:]), [1.0, 2.0], [3.0])
    gradcheck(SOFTPLUS, [-1.0, 0.5]); gradcheck(lambda x: SOFTPLUS(scale=2.0, x=x), [-1.0, 0.5])
    all([gradcheck(SOFTPLUS, [-1.0, 0.5], scale) for scale in (2, 3, 2)]); type(SOFTPLUS(LARGE)) is np.ndarray
    all([gradcheck(functools.partial(SOFTPLUS, scale=scale), [-1.0, 0.5]) for scale in (2, 3, 2)])
    math.isclose(grad(SOFTPLUS)(0.5), 1 / (1 + math.exp(-0.5)))
    gradcheck(defvjp(math.sin, lambda g, out, x: g * np.cos(x)), 0.5); defvjp(math.cos, lambda *_: 0)(2) == math.cos(2)
    """)


@pytest.mark.parametrize("fact", FACTS)
def test_what_is_written_here_of_tensors_in_python_and_numpy_holds(fact):
    assert eval(fact)


WRONG: list[tuple[Any, str, str]] = [  # of Tensors and rules of one's own; the table's own follow with the rules
    (ValueError, r"\.data must have the shape \(2,\) of the Tensor, not \(3,\)", "setattr(T, 'data', np.zeros(3))"),
    (ValueError, r"\.grad must have the shape \(2,\) of the Tensor, not \(3,\)", "setattr(T, 'grad', np.zeros(3))"),
    (TypeError, r"from dtype\('float64'\) to dtype\('int64'\)", "setattr(Tensor(np.arange(3)), 'data', np.zeros(3))"),
    (TypeError, "^bool data cannot require gradients", "grad(np.sum)({np.array([True, False])/[True]/True})"),
    (TypeError, "^a Tensor holds booleans, integers or floats, not data of dtype", "grad(np.sum)({'3'/1j})"),
    (ValueError, "leaves", "setattr({T * 2/Tensor([1.0, 2.0])}, 'grad', np.zeros(2))"),
    (ValueError, "axis", "{Tensor/leaf}(0.0).{sum/mean/max/min/prod/var/std}(axis=3)"
     "; {Tensor/leaf}(ONES).{sum/mean/max/min/prod/var/std}(axis={5/-3/(0, 0)})"),
    (ZeroDivisionError, "by zero", "(defvjp(lambda x: x + 0, lambda *_: 1 / 0)(T * 1) + T).sum().backward()"),
    (ZeroDivisionError, "sum to zero", "{/jit}({/grad/functools.partial(grad, argnums=1)}(lambda x, w: np.sum("
     "np.average(x, -1, weights=w))))(*[np.array({[1.0, -1.0]/[0.0, 0.0]/[[1.0, 2.0], [3.0, -3.0]]})] * 2)"),
    (TypeError, "no derivative rule for argument 0", "defvjp(lambda x, y=2.0: x * y, None, lambda g, *_, y=2.0: g)(T)"),
    (TypeError, "no derivative rule for argument 1", "defvjp(lambda x, y: x + y, lambda g, *_: g)(1.0, T)"),
    ((TypeError, AttributeError), r"_Unread|reads \.sum of a parameter whose name",
     "defvjp(lambda x: x * 2.0, lambda g, out, _x: {g * _x/g * len(_x)/g * _x[0]/g * _x.sum()/g * np.sum(_x)/[*_x]})"
     "(leaf(np.ones(20_000))).sum().backward()"),
    *[(ValueError, re.escape(f"returned shape {g} for an argument of {x}"),
       f"defvjp(lambda x: x * 2, lambda g, *_: np.zeros({g}))(leaf(np.zeros({x}))).sum().backward()") for x, g in
      [((0, 3), (0, 5)), ((0, 5), (0, 3)), ((0, 0, 3), (0, 2, 3)), ((3,), ()), ((2,), (3,)), ((2,), (5, 2))]],
]  # fmt: skip


@pytest.mark.parametrize("x", [np.arange(3000.0), np.ones((2000, 2)), np.array(2.5), np.float32([1, 2]), INTS])
def test_tensor_shows_itself_as_numpy_does(x):
    shown = repr(x).replace("\n      ", "\n       ")  # Tensor is one letter longer than array
    assert repr(Tensor(x)) == re.sub(r",\s+shape=.*\)", ")", shown).replace("array", "Tensor")


class Named(Tensor):
    """A Tensor that is made in another way, and knows more."""

    def __init__(self, name, *, shape):
        Tensor.__init__(self, np.ones(shape), requires_grad=True)
        self.name = name


class Slotted(Tensor):
    __slots__ = ("name",)
    __init__ = Named.__init__


@pytest.mark.parametrize("make", [lambda name, shape: leaf(np.ones(shape)), Named, Slotted])
def test_leaves_also_those_of_derived_classes_can_be_copied_and_pickled(make):
    t = make("w", shape=2)
    (t * t).sum().backward()
    t.data = [3.0, 4.0]
    pickled = [pickle.loads(pickle.dumps(t, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for other in (copy.copy(t), copy.deepcopy(t), *pickled):
        assert (type(other), getattr(other, "name", "none")) == (type(t), getattr(t, "name", "none"))
        (other * t.detach()).sum().backward()
        np.testing.assert_array_equal(other.grad, [2.0 + 3.0, 2.0 + 4.0])
        SGD([other], lr=1.0).step()
        np.testing.assert_array_equal([other.data, t.data, t.grad], [[-2.0, -2.0], [3.0, 4.0], [2.0, 2.0]])
    constant = copy.deepcopy(t.detach())
    assert (constant.requires_grad, constant.grad, constant.data.tolist()) == (False, None, [3.0, 4.0])
    constant.requires_grad = True
    constant.sum().backward()
    np.testing.assert_array_equal(constant.grad, [1.0, 1.0])


def test_of_a_python_function_each_defvjp_makes_one_with_its_own_rule():
    def square(x):
        return x * x

    first, second = defvjp(square, lambda g, out, x: g * 7), defvjp(square, lambda g, out, x: g * 2 * x)
    third, steep = defvjp(first, lambda g, out, x: g * x * 3), defvjp(relu, lambda g, out, x: g * 5)
    for f, slope in {first: 7.0, second: 6.0, third: 9.0, steep: 5.0, relu: 1.0, Tensor.relu: 1.0}.items():
        assert grad(f)(3.0) == jit(grad(f))(3.0) == slope


def test_of_a_ufunc_defvjp_replaces_the_rule_also_for_operators_and_the_old_one_goes():
    def rule(factor):
        return lambda g, out, x: shapes.append(g.shape) or g * factor[0] * np.cosh(x)

    another_engine, shapes, rules, x = imported(SOURCE), [], [], np.linspace(-3, 3, 6).reshape(2, 3)
    for factor in (1, 2, 3):
        new = rule(np.array([factor]))
        assert another_engine.defvjp(np.sinh, new) is np.sinh
        rules.append(weakref.ref(new))
        slopes = another_engine.grad(lambda x: np.sinh(x).sum())(x)
        np.testing.assert_allclose(slopes, factor * np.cosh(x), rtol=1e-14)
    gc.collect()
    assert (shapes, [rule() for rule in rules]) == ([(2, 3)] * 3, [None, None, new])
    assert grad(np.sinh)(0.0) == 1.0
    another_engine.defvjp(np.add, lambda g, out, x, y: g)
    y = another_engine.Tensor(1.0, requires_grad=True)
    for call in (lambda: 1 + y, lambda: np.add(1, y), lambda: y + y):
        with pytest.raises(TypeError, match=r"np\.add has no derivative rule for argument 1"):
            call()
    (y + 1).backward()
    assert y.grad == 1.0


@pytest.mark.parametrize("square", [lambda x: float(x) ** 2, lambda x: math.pow(x, 2), lambda x: np.square(x).item()])
def test_a_plain_function_may_return_a_python_float(square):
    def rule(g, out, x):
        assert (out.shape, out.ndim, out.size, out.dtype) == ((), 0, 1, float)
        return g * 2 * x * np.reshape(out / out, out.shape)

    f = defvjp(square, rule)
    for x in (3.0, np.float64(3.0), np.array(3.0)):
        assert grad(f)(x) == grad(lambda x: f(x).sum())(x) == 6.0
        assert grad(grad(f))(x) == 2.0
    t = leaf(3.0, np.float32)
    assert (f(t) * np.float32(2)).dtype == np.float32  # as without Tensors
    f(t).backward()
    assert (t.grad, t.grad.dtype, grad(f)(np.float32(3.0)).dtype) == (6.0, np.float32, np.float32)


@pytest.mark.parametrize("use", calls("""
    f(x); f(leaf(x)).sum().backward(); f(leaf(x), k=3).sum().backward(); jvp(jit(f), (x,), (x,))
    grad(lambda x: grad(lambda x: f(x, 3).sum())(x).sum())(x); jit(grad(lambda x: f(x).sum()))(x)
    jit(lambda x: jvp(f, (x,), (x,)))(x); gradcheck(lambda x: f(x, k=2), x)
    defvjp(f, lambda g, out, x, k=2: g * k)(leaf(x), k=3).sum().backward()
    """))  # fmt: skip
def test_functions_with_rules_their_arrays_and_their_rules_go_with_those_who_hold_them(use):
    def once():
        a, b = np.ones(3), np.ones(3)
        f = defvjp(lambda x, k=2: x * k * a, lambda g, out, x, k=2: g * k * b)
        references.extend(map(weakref.ref, (a, b, f, f.__wrapped__)))
        eval(use, globals() | {"f": f, "x": np.ones(3)})

    references: list[Any] = []
    for _ in range(3):
        once()
    gc.collect()
    assert {reference() for reference in references} == {None}


@pytest.mark.parametrize("data", [np.uint8([0, 5]), np.array([True, False]), [1.0, -2.0], np.int64(3)], ids=repr)
def test_functions_of_integers_booleans_and_lists(data):
    expected = 1 / (1 + np.exp(-np.asarray(data, float)))
    np.testing.assert_allclose([sigmoid(data), sigmoid(Tensor(data)).data], [expected, expected], rtol=1e-3)
    np.testing.assert_array_equal(relu(data), np.maximum(data, 0))


@pytest.mark.parametrize("exponent", [*"BHIQbhiq?"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_exponents_of_integers_do_not_wrap_around(exponent, dtype):
    def power(x, y):
        return np.sum(x**y)

    integer, x, zero = np.dtype(exponent).type, np.array([3, 0.5, 2], dtype), np.zeros(3, dtype)
    rtol = 1e-2 if dtype == np.float16 else 1e-5
    for y in (np.array([0, 1, 2]).astype(integer), integer(0), integer(1), np.array(2).astype(integer)):
        e = np.asarray(y, float)
        first, second = e * x.astype(float) ** (e - 1), e * (e - 1) * x.astype(float) ** (e - 2)
        for slopes, bends in zip(ways(grad(power)), ways(hessian(power)), strict=True):
            np.testing.assert_allclose(slopes(x, y), first.astype(dtype), rtol=rtol, strict=True)
            np.testing.assert_allclose(np.diag(bends(x, y)), second, rtol=rtol)
        np.testing.assert_array_equal(grad(power)(zero, y), grad(power)(zero, e.astype(dtype)))
    base = integer(3)
    np.testing.assert_allclose(grad(power, 1)(np.array([base]), dtype(2)), int(base) ** 2 * math.log(base), rtol=rtol)
    assert grad(power)(np.ones(1), np.int8([-128])) == -128


F, FS = np.float32(1.5), np.float32([2, 3])
OF_PYTHON_FLOATS = calls("""
    np.{copy/reciprocal/fabs/deg2rad/radians/rad2deg/degrees/square/negative/positive/absolute/sqrt/exp/sum/mean/max}(p)
    np.{prod/var/std/median/ptp/average/ravel/cumsum/cumprod/nan_to_num/atleast_1d}(p)
    np.{add/subtract/multiply/divide/power/maximum/fmax/fmin}({p, 2.0/p, 2/p, F/p, FS/2.0, p/2, p/F, p/FS, p})
    np.{hypot/arctan2/remainder/logaddexp/dot/inner/outer/kron}({p, 2.0/p, 2/p, F/p, FS/2.0, p/2, p/F, p/FS, p})
    np.clip({p, F, np.float32(2)/p, 0.0, 2/F, p, 5/F, p, None/2, p, 3})
    {-/+}p; abs(p); p**2; p % 2; 1 - p; -p + FS; {+p/p**2/p % 2} * FS; 2 * p - FS; FS**p; np.clip(FS, p, 2 * p)
    np.where(True, p, F); np.stack([p, F]); np.linalg.norm(np.atleast_1d(p))
    """)
BESIDE_PYTHON_FLOATS = calls("np.clip({1.5, t, t/1.5, t, None/2, t, t/t, 1.5, 9.0}); np.fmax(t, 1.5); np.fmin(1.5, t)")
BESIDE_PYTHON_FLOATS += ["np.where(t > 0, t, 1.5)", "np.dot(t, 1.5)"]


@pytest.mark.parametrize(("expression", "x"), [
    *[(f"({expression}) * np.float32(0.1)", 1.25) for expression in OF_PYTHON_FLOATS],
    *itertools.product(BESIDE_PYTHON_FLOATS, (np.float32(1.25), np.float32([1.25, 2]), np.float16(1.25))),
])  # fmt: skip
def test_functions_of_python_floats_and_beside_them_have_the_dtypes_of_numpy_and_gradients_that_of_x(expression, x):
    def total(x):
        return np.sum(eval(expression, globals(), {"p": x, "t": x}))

    expected, derivative = np.asarray(total(x)), value_and_grad(total)
    (value, slope), (fast_value, fast_slope) = derivative(x), jit(derivative)(x)
    for found in (value, fast_value, jit(total)(x), value_and_grad(no_grad()(total))(x)[0]):
        np.testing.assert_allclose(found, expected, rtol=1e-6, strict=True)
    wide, rtol = derivative(np.asarray(x, float))[1], 8 * float(np.finfo(expected.dtype).eps)
    for found in (slope, fast_slope):
        np.testing.assert_allclose(found, wide.astype(np.asarray(x).dtype), rtol, strict=True)


# --- Cost -------------------------------------------------------------------------------------------------------------
# What the speed of eager code hangs on, in counts that are the same on every machine: calls of Python functions in
# this file, and arrays that are made. benchmarks/peers.py takes the time.


def engine_work(run: Any) -> tuple[int, int]:
    """How many functions of the engine run calls, and in how many steps: bytecodes, and arguments given by a star."""
    calls = steps = 0

    def within(frame: Any, event: str, _: Any) -> Any:
        nonlocal steps
        steps += event == "opcode"
        return within

    def called(frame: Any, event: str, _: Any) -> Any:
        nonlocal calls, steps
        code = frame.f_code
        if code.co_filename != tinygrad_lite.__file__:
            return None
        calls += not code.co_name.startswith(("<list", "<gen"))  # functions of their own up to Python 3.11
        if code.co_flags & inspect.CO_VARARGS:
            steps += len(frame.f_locals[code.co_varnames[code.co_argcount + code.co_kwonlyargcount]])
        frame.f_trace_opcodes = True
        return within

    before = sys.gettrace()
    sys.settrace(called)
    try:
        run()
    finally:
        sys.settrace(before)
    return calls, steps


def engine_calls(run: Any) -> int:
    run()  # what is done but once
    return engine_work(run)[0]


def assert_linear(run: Any) -> None:
    """That every further item costs run(n) what those before cost, and none more for their number."""
    run(3)  # what is done but once
    few, more, most = [engine_work(lambda n=n: run(n))[1] for n in (6, 12, 24)]
    assert most - more <= 2.01 * (more - few)  # as names with more digits may take a line of their own under jit


def second(f: Any) -> Any:
    """The gradient of a function of the gradient."""
    return grad(lambda xs: sum([np.sum(g * g) for g in grad(f)(xs)]))


ORDERS = {"first": grad, "second": second, "jit": lambda f: jit(grad(f)), "jit second": lambda f: jit(second(f))}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["stack", "concatenate", "hstack", "vstack", "dstack", "column_stack"])
def test_joining_costs_each_of_many_parts_what_it_costs_each_of_few(name, order):
    derivative = ORDERS[order](lambda xs: np.sum(getattr(np, name)(xs) ** 3))
    for shape in [(), (2, 2), (700, 2)][name == "concatenate" :][: {"first": 3, "second": 2}.get(order, 1)]:
        assert_linear(lambda n, shape=shape: derivative([np.ones(shape)] * n))


def chained(n: int) -> Any:
    return lambda x: functools.reduce(lambda a, _: np.sin(a) * x, range(n), x).sum()


MANY = {
    "leaves": lambda n: grad(lambda xs: sum([x * x for x in xs.values()]))({f"k{i}": 1.0 for i in range(n)}),
    "leaves under jit": lambda n: jit(grad(lambda xs: sum([x * x for x in xs])))([1.0] * n),
    "arguments": lambda n: jit(grad(lambda *xs: sum([x * x for x in xs]), tuple(range(n))))(*[1.0] * n),
    "results under jit": lambda n: jit(lambda xs: [np.sin(x) for x in xs])([np.ones(2)] * n),
    "results of jacobian": lambda n: jacobian(lambda x: [x * i for i in range(n)])(1.0),
    "entries of jacobian": lambda n: jit(jacobian(lambda x: np.sin(x)))(np.ones(n)),
    "results of jvp": lambda n: jvp(lambda *xs: [np.sin(x) for x in xs], (1.0,) * n, (1.0,) * n),
    "results of jvp under jit": lambda n: jit(lambda xs: jvp(lambda *xs: [np.sin(x) for x in xs], xs, xs))((1.0,) * n),
    "parts": lambda n: grad(lambda x: sum([np.sum(part**2) for part in np.split(x, n)]))(np.ones(n)),
    "items": lambda n: second(lambda xs: sum([x**3 for x in xs[0]]))([np.ones(n)]),
    "indices": lambda n: jit(grad(lambda x: np.sum(x[[*range(n)]] ** 2)))(np.ones(n)),
    "operations": lambda n: grad(grad(chained(n)))(1.0),
    "operations under jit": lambda n: jit(grad(chained(n)))(np.ones(2)),
    "nodes of to_dot": lambda n: to_dot(chained(n)(leaf([1.0]))),
}


@pytest.mark.parametrize("what", MANY)
def test_each_of_many_costs_what_each_of_few_costs(what):
    assert_linear(MANY[what])


def test_jit_asks_python_for_the_variables_once_a_call_of_numpy(monkeypatch):
    """As Python makes a dict of them all whenever it is asked, in functions of many."""
    asked, frame_of = [], sys._getframe

    class Frame(types.SimpleNamespace):
        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            found = getattr(self.frame, name)
            return Frame(frame=found) if name == "f_back" and found else found

    def two_calls(x: Any) -> Any:
        a = np.sin(x)
        return np.exp(a)

    monkeypatch.setattr(sys, "_getframe", lambda depth=0: Frame(frame=frame_of(depth + 1)))
    assert "a = np.sin(x)" in jit(two_calls).source(np.ones(2))
    assert asked.count("f_locals") == 2


@pytest.mark.parametrize("axis", [*range(-3, 3), np.int64(1)])
@pytest.mark.parametrize(("name", "lengths"), [("stack", [1, 1, 1, 1]), ("concatenate", [2, 0, 3, 1])])
def test_joined_arrays_get_back_their_own_stretches_along_every_axis(name, lengths, axis):
    shape = [2, 3, 2]
    shape[axis] = sum(lengths)
    weights = np.random.default_rng(0).normal(size=shape)
    stretches = np.split(weights, np.cumsum(lengths)[:-1], axis)
    stretches = [w.squeeze(axis) if name == "stack" else w for w in stretches]
    check(name, Call([A(*w.shape) for w in stretches], axis))
    for f in ways(grad(lambda *xs: np.sum(named(name)(xs, axis) * weights), (0, 1, 2, 3))):
        assert_alike(f(*map(np.ones_like, stretches)), (*stretches,), rtol=0, atol=0)


@contextlib.contextmanager
def traced_memory() -> Any:
    """Python notes its memory within, and what this gives counts the arrays that were made there and still live."""
    arrays = [tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)]
    tracemalloc.start()
    try:
        yield lambda: len(tracemalloc.take_snapshot().filter_traces(arrays).traces)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("x", [leaf(0.5), leaf([0.5, 0.6]), Tensor(0.5)], ids=repr)
def test_operations_on_numbers_and_small_arrays_take_the_quick_way(x):
    for f in (lambda: -x, lambda: abs(x), lambda: x + x, lambda: x / x):
        assert engine_calls(f) == 1
    for f in (lambda: np.exp(x), lambda: x.tanh(), lambda: np.add(x, x), lambda: np.multiply(x, 2.0)):
        assert engine_calls(f) <= 3


def test_a_scalar_step_takes_few_calls_and_numbers_are_no_arrays_until_somebody_looks():
    def step():
        optimizer.zero_grad()
        losses.append((w * two + b - 1.0) ** 2)
        losses[-1].backward()
        optimizer.step()

    with traced_memory() as live_arrays:
        two, w, b = Tensor(np.float64(2.0)), Tensor(2.0, requires_grad=True), Tensor(0.0, requires_grad=True)
        optimizer, losses = SGD([w, b], lr=0.01), []
        assert engine_calls(step) <= 29
        assert losses[1].item() < losses[0].item()
        assert live_arrays() == 0
        assert [type(t.data) for t in (two, w, b, *losses)] == [np.ndarray] * 5
        assert live_arrays() == 5


def test_a_step_of_a_network_takes_few_calls_and_no_more_arrays_than_by_hand():
    rng = np.random.default_rng(0)
    shapes = (128, 64), (64, 64), (64,), (64, 10), (10,), (128, 10)
    X, *start, y = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    W, b, V, c = parameters = [leaf(x, np.float32) for x in start]

    def forward():
        for parameter in parameters:
            parameter.grad = None
        return ((np.tanh(X @ W + b) @ V + c - y) ** 2).mean()

    assert engine_calls(lambda: forward().backward()) <= 80
    with traced_memory() as live_arrays:
        loss = forward()
        assert live_arrays() == 7  # a result of each operation but the mean, which is a number
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        loss.backward()
        assert live_arrays() == 7 + 4  # and the gradients
        hidden, gradients = 128 * 64 * 4, (64 * 64 + 64 + 64 * 10 + 10) * 4
        # By hand it is d_h, h * h, 1 - h * h, and their product.
        assert tracemalloc.get_traced_memory()[1] - held < 3 * hidden + 2 * 128 * 10 * 4 + gradients


# --- SGD --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01, 0.3])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.5, False), (0.9, False), (0.5, True), (0.9, True)])
@given(lr=st.floats(0.001, 0.5), seed=SEEDS)
@settings(max_examples=4)
def test_sgd_follows_the_published_rule_where_there_is_a_gradient(dtype, weight_decay, momentum, nesterov, lr, seed):
    rng, idle = np.random.default_rng(seed), leaf(1.0)
    params = [leaf(rng.normal(size=shape), dtype) for shape in ((), (3,), (2, 2))]
    thetas, buffers = [p.data.copy() for p in params], [0.0, 0.0, 0.0]
    optimizer = SGD((p for p in (idle, *params)), np.float64(lr), momentum, weight_decay, nesterov)
    for create_graph in [False, True] * 3:  # which makes gradients Tensors
        optimizer.zero_grad()
        for p in params:
            (p * rng.normal(size=p.shape).astype(dtype)).sum().backward(create_graph=create_graph)
        optimizer.step()
        for i, p in enumerate(params):
            # https://pytorch.org/docs/stable/generated/torch.optim.SGD.html, with dampening 0
            g = data_of(p.grad) + dtype(weight_decay) * thetas[i]
            buffers[i] = dtype(momentum) * buffers[i] + g
            thetas[i] = thetas[i] - dtype(lr) * (g + dtype(momentum) * buffers[i] if nesterov else buffers[i])
            assert (type(p.data), p.dtype) == (np.ndarray, dtype)
            np.testing.assert_allclose(p.data, thetas[i], rtol=2e-6 if dtype is np.float32 else 1e-14, atol=1e-12)
            data_of(p.grad)[...] = 0.0  # of which nothing else may be left
    assert idle.item() == 1.0


# --- The rules --------------------------------------------------------------------------------------------------------


def test_every_row_of_the_table_has_a_case_on_arrays_of_other_libraries_too_and_every_case_a_row():
    rules = {f for f, row in ROWS.items() if row.vjps or row.expression}
    assert {named(name) for name in CATALOGUE if name not in OF_THIS_FILE} == rules & {*FUNCTIONS}
    assert {*map(named, CONSTANTS)} == {f for f in ROWS if f in FUNCTIONS} - rules
    assert [name for name, calls in EVERYWHERE.items() if not calls] == []


def flat_by_nature(name: str, call: Call, plain: Any) -> bool:
    """Whether a call has no other gradient than 0: of the sign alone, of powers of 1, of the spread of one number, or
    because nothing comes out or goes in."""
    first = call.arguments[0][0] if call.arguments[0] else None
    return (
        (not isinstance(first, A) and (name == "copysign" or (name == "power" and np.all(np.equal(first, 1)))))
        or (name in ("ptp", "var", "std", "nanvar", "nanstd") and not np.any(plain))
        or not any(math.prod(x.shape) for x in call.drawn)
        or not sum(map(np.size, tree_leaves(plain)))
    )


def test_every_rule_is_recorded_by_a_call_and_every_call_and_every_array_has_a_gradient_that_is_not_0_throughout():
    """Also the rules of functions that NumPy has not, which the re-expressions and the other rules call."""
    x = leaf([1.0, 2.0])
    (x[[0, 0]] ** 2).sum().backward(create_graph=True)  # a gradient that depends on x goes back into its place
    rows, flat, moving, arrays_of = {node[1] for node in nodes_of(x.grad)}, [], set(), set()
    for name, call in ((name, call) for name, calls in CATALOGUE.items() for call in calls):
        arrays = call.draw()
        out, gradients = backward(name, call, arrays, create_graph=True)
        rows |= {node[1] for node in nodes_of(*required([*tree_leaves(out), *gradients]))}
        is_moving = [np.any(data_of(g)) for g in gradients]
        if flat_by_nature(name, call, call.of(named(name), arrays)) == any(is_moving):
            flat.append(f"{name}({call})")
        arrays_of |= {(name, i) for i in range(len(gradients))}
        moving |= {(name, i) for i, moves in enumerate(is_moving) if moves}
    assert flat == []
    assert arrays_of - moving == {("copysign", 1), ("full_like", 0)}
    assert [f for f, row in ROWS.items() if row.vjps and row not in rows] == []


def test_the_second_engine_is_asked_for_gradients_of_all_functions_that_it_knows():
    unknown = """array_split cbrt compress copy copysign cumprod diagonal dsplit flip full_like hsplit interp ldexp
        linalg.eigh linalg.eigvalsh linalg.lstsq linalg.matmul linalg.matrix_transpose linalg.qr linalg.slogdet
        linalg.tensordot matrix_transpose median meshgrid nanmax nanmean nanmin nanstd nansum nanvar percentile ptp
        quantile split take take_along_axis vdot vsplit"""
    asked = [name for name in CATALOGUE if any(of_second_engine(name, c, c.draw()) for c in CATALOGUE[name])]
    assert {*CATALOGUE} - {*asked} == {*unknown.split()}


@pytest.mark.parametrize(("name", "call"), params(CATALOGUE))
def test_calls_agree_with_numpy_differences_and_second_engine(name, call):
    check(name, call)


@pytest.mark.parametrize("name", ELEMENTWISE)
@given(data=st.data(), seed=SEEDS)
@settings(max_examples=4)
def test_elementwise_functions_agree_with_differences_for_all_shapes_that_broadcast(name, data, seed):
    domains = ELEMENTWISE[name]
    shapes = mutually_broadcastable_shapes(num_shapes=len(domains), max_dims=4, min_side=0, max_side=3)
    call = Call(*[A(*s, of=domain) for s, domain in zip(data.draw(shapes).input_shapes, domains, strict=True)])
    call.has_second = name not in ("where", "clip")
    check(name, call, seed)


@given(data=st.data(), shape=array_shapes(max_dims=3, max_side=4), seed=SEEDS)
def test_indexing_agrees_with_differences_for_random_indices(data, shape, seed):
    index = data.draw(
        basic_indices(shape, allow_newaxis=True)
        | integer_array_indices(shape, result_shape=array_shapes(max_dims=2, max_side=3))
        | st.integers(0, 2**16).map(lambda bits: np.random.default_rng(bits).random(shape) < 0.5)
    )
    check("getitem", Call(A(*shape), index), seed)
    x = np.random.default_rng(seed).normal(size=shape)
    arrays = isinstance(index, tuple) and any(isinstance(i, np.ndarray) for i in index)
    np.testing.assert_array_equal(leaf(x)[tuple(map(Tensor, index)) if arrays else index].data, x[index])


@pytest.mark.parametrize("name", [*REDUCTIONS, "ptp", "median", "average"])
@given(data=st.data(), seed=SEEDS)
@settings(max_examples=6)
def test_reductions_agree_with_differences_for_all_axes(name, data, seed):
    shape = data.draw(array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=3))
    axes = data.draw(st.permutations(range(len(shape))))[: data.draw(st.integers(0, len(shape)))]
    axes = tuple([axis - len(shape) * data.draw(st.booleans()) for axis in axes])
    options = {"axis": data.draw(st.sampled_from([None, axes, *axes[:1]])), "keepdims": data.draw(st.booleans())}
    if name in ("var", "std"):
        if math.prod(shape) == np.size(np.sum(np.ones(shape), options["axis"])):
            return  # nothing varies: the tests of conventions look at that
        options["ddof"] = data.draw(st.sampled_from([0, 1, 0.5]))
    check(name, Call(A(*shape), **options), seed)


OF_OPERATORS = """add:add subtract:sub multiply:mul divide:truediv power:pow matmul:matmul negative:neg positive:pos
    absolute:abs equal:eq not_equal:ne less:lt less_equal:le greater:gt greater_equal:ge invert:inv bitwise_and:and_
    bitwise_or:or_ bitwise_xor:xor"""
OF_PYTHON = {name: getattr(operator, short) for name, short in [pair.split(":") for pair in OF_OPERATORS.split()]}
NAMES_OF_METHODS = {"abs": "absolute", "conj": "conjugate"} | {
    name: name for name in dir(Tensor) if name in CALLS and name != "sort" and callable(getattr(Tensor, name))
}  # but a.sort() works in place
RENAMED = ("reshape", "transpose", "clip")  # whose parameters are those of ndarray's methods


@pytest.mark.parametrize("way", [*OF_PYTHON, *NAMES_OF_METHODS])
def test_operators_and_methods_are_numpys_functions(way):
    assert {"sum", "exp", "argmax", "reshape", "clip"} <= {*NAMES_OF_METHODS}
    name, of_operator = NAMES_OF_METHODS.get(way, way), OF_PYTHON.get(way)
    for call in CALLS[name]:
        args, options = call.arguments
        on_tensor = args and isinstance(args[0], A) and not (name in RENAMED and options)
        if (name == "matmul" and any(isinstance(x, list) for x in args)) or not (of_operator or on_tensor):
            continue
        plain, found = call.of(named(name), call.draw()), []
        for function in (named(name), of_operator or (lambda x, *args, **how: getattr(x, way)(*args, **how))):
            xs = [leaf(a) if is_float(a) else Tensor(a) for a in call.draw()]
            out = call.of(function, xs)
            assert_same(out, plain)
            if out.requires_grad and out.size:
                (out * out).sum().backward()
            found.append([out.data, *[x.grad for x in xs]])
        np.testing.assert_equal(*found)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_special_values_pass_through_as_in_numpy(name):
    xs = np.meshgrid(*[[nan, inf, -inf, 0.0, -0.0, 1.0, -1.5, 700.0, 1e300]] * len(ELEMENTWISE[name]), indexing="ij")
    xs = [xs[0] > 0, *xs[1:]] if name == "where" else xs
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(named(name)(*leaves_of(xs)).data, named(name)(*xs), rtol=1e-12)


OF_ROWS = """
    np.{sum/max/min/prod/ptp/median/average/cumsum/cumprod/sort/gradient/sinc}(x); np.quantile(x, {0/0.25/0.5/0.9/1})
    np.{nansum/nanmean/nanvar/nanstd/nanmax/nanmin}(x); np.nanvar(x, ddof=1); np.percentile(x, [10, 50], method="lower")
    np.interp(x, [0.0, 1.0, 1.0, 2.0], [1.0, 2.0, np.inf, 3.0]); np.interp([-1.0, 0.0, 0.5, 1.5, 9.0], [0, 1, 2, 3], x)
    np.partition(x, 1); np.select([np.isnan(x), x > 1], [1.0, x], -x); np.convolve(x, [1.0, 0.0], "same")
    np.max(x, where=[True, False, True, True], initial=0.5); np.sum(x, where=x > 1, initial=1); np.mean(x, where=x < 1)
    np.{var/std/mean}(x[:0]); np.{var/std/mean}(x[:0].reshape(0, 3), 0); np.linalg.norm(x, {0/0.5/1/1.5/2/3/-1/-2/inf})
    np.tril(np.linalg.qr(x.reshape(2, 2)).R, -1)
    """


@pytest.mark.parametrize("text", calls(OF_ROWS))
def test_nan_infinity_ties_and_averages_of_nothing_have_numpys_values(text):
    f = eval(f"lambda x: {text}", globals())
    for row in [*itertools.product([np.nan, inf, -inf, 0.0], repeat=4), [2.0, 2.0, 1e300, 0.5], [2.0] * 4]:
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            np.testing.assert_array_equal(f(leaf(row)).data, f(np.array(row)))


def ways(f: Any) -> list[Any]:
    return [f, jit(f)]


# Of float16, which does not count one by one beyond 2,048, and ends at 65,504.
OF_MANY = """
    np.mean(x); np.mean(x[:, 0]); np.mean(x, where=last); np.mean(x[:5000], 0, where=last[-5000:]).sum()
    np.nanmean(x[:5000], 0).sum(); np.average(x[:9000]); np.{max/min}(x[:, 0]); np.{max/min}(x[:, 1])
    np.{max/min}(x, 0).sum(); np.sum(np.{max/min}(x, axis=0, keepdims=True))
    np.nanvar(x[:5000] - 10 + signs[:5000], 0)[0] * 5000; np.var(x - 10 + signs / 100) * 60_000
    """


@pytest.mark.parametrize("text", calls(OF_MANY))
def test_what_float16_cannot_count_or_add_up_has_numpys_value_and_the_gradient_of_float64(text):
    last, signs = np.arange(140_000).reshape(70_000, 2) >= 100_000, np.resize(np.float16([1, -1]), (70_000, 1))
    f = eval(f"lambda x: {text}", {"np": np, "last": last, "signs": signs})
    x = np.full((70_000, 2), 10.0, np.float16)
    expected = grad(f)(x.astype(float)).astype(np.float16)
    for gradient in ways(value_and_grad(f)):
        value, g = gradient(x)
        assert value == f(x)
        rtol = 1e-3 if "nanvar" in text else 2e-3 if "var" in text else 0
        np.testing.assert_allclose(g, expected, rtol=rtol, strict=True)


def test_sinc_has_all_its_derivatives_near_0():
    x = np.array([0.0, 1e-9, -0.001, 0.0299, 0.0301, 0.2])
    series = np.polynomial.Polynomial([(-1) ** (k // 2) * (k % 2 == 0) / math.factorial(k + 1) for k in range(24)])
    slope = grad(lambda x: np.sinc(x).sum())
    np.testing.assert_allclose(slope(x), np.pi * series.deriv()(np.pi * x), rtol=1e-12)
    bends = np.diag(hessian(lambda x: np.sinc(x).sum())(x))
    np.testing.assert_allclose(bends, np.pi**2 * series.deriv(2)(np.pi * x), rtol=1e-9)
    for dtype, units in ((np.float16, 8), (np.float32, 8), (np.float64, 40)):  # in the last place of 1
        x = np.linspace(-0.9, 0.9, 3000).astype(dtype)
        exact = slope(x.astype(np.longdouble)).astype(float)
        np.testing.assert_allclose(slope(x), exact, atol=units * float(np.finfo(dtype).eps))


def test_partition_keeps_numpys_order_whatever_that_is():
    partition, weights = functools.partial(np.partition, kth=(100, 200), axis=1), np.arange(900.0).reshape(3, 300)
    for seed in range(20):
        x = np.random.default_rng(seed).integers(0, 50, (3, 300)) / 7.0
        out, (g,) = grads(partition, x, weights=weights)
        np.testing.assert_array_equal(out, partition(x))
        np.testing.assert_array_equal(np.sort(x + 1j * g), np.sort(out + 1j * weights))  # among equals in any order


WRONG += [
    (ValueError, "the order 'K' in memory: give 'C' or 'F'", "np.ravel(t, 'K').sum().backward()"),
    (ValueError, "the order 'A' in memory", "t.reshape(4, order='A').sum().backward()"),
    (TypeError, "would lose them as a NumPy array", "np.gradient(t, t[0]); np.gradient(np.ones(2), t[0]); t.tolist()"
     "; np.quantile(t, t[0, 0])"),
    (ValueError, "must be in the range", "np.quantile(t, 1.5)"),
    (TypeError, "takes no weights", "np.quantile(t, 0.5, weights=t.detach())"),
    (ValueError, "has no.* identity|does not have an identity", "np.max(t, where=[True, False])"),
    (ValueError, "nonsense", "np.take(t, 9, mode='nonsense')"),
    (TypeError, r"np\.interp .* takes no (left|period)", "np.interp(t, [0, 1], [0, 1], {left/period}=3)"),
    (TypeError, r"np\.where .* argument 0", "np.select([t], [t])"),
    (TypeError, r"cannot be written to.*np\.sort", "t.sort()"),
    (TypeError, "not data of dtype complex128: use .real and .imag", "t * 1j"),
    (TypeError, r"np\.add\b", "np.add(1.0, [1.0, 2.0], out=t); np.add.at(t, [0], 1.0)"),
    (TypeError, r"np\.(sum|concatenate)\b", "np.sum(ONES, 0, out=t); np.concatenate([np.ones(1), np.ones(1)], out=t)"),
    (TypeError, r"np\.(copyto|put|full_like)\b", "np.copyto(t, 1.0); np.{copyto/full_like}(np.ones(2), t)"
     "; np.put(t, [0], 1.0)"),
    (ValueError, "full_matrices=False", "np.linalg.svd(t[:1])"),
    (TypeError, r"np\.linspace .* takes no retstep", "np.linspace(t, 1, 3, retstep=True)"),
    (TypeError, "takes no hermitian", "np.linalg.svd(t, hermitian=True)"),
    (TypeError, "takes no upper", "np.linalg.cholesky(t @ t.T, upper=True)"),
    (TypeError, "pinv of .* takes no rtol", "np.linalg.pinv(t, rtol=1e-3)"),
    (TypeError, "takes no mode", "np.linalg.qr(t, 'complete')"),
    (TypeError, "lstsq of .* takes no rcond", "np.linalg.lstsq(t, t, 0.1)"),
    (np.linalg.LinAlgError, "Singular", "np.linalg.det(np.stack([t[0], t[0]])).backward()"),  # as the README says
]  # fmt: skip


@pytest.mark.parametrize(("error", "match", "text"), [(*row, text) for *row, texts in WRONG for text in calls(texts)])
def test_an_error_names_what_is_refused_and_leaves_data_and_gradients_as_they_were(error, match, text):
    t = leaf([[1.0, -2.0], [3.0, 4.0]])
    if "linalg" in text:  # which NumPy does as long as no gradient is asked for
        eval(text.removesuffix(".backward()"), {"np": np, "t": t.detach()})
    with pytest.raises(error, match=match):
        eval(text)
    assert (T.data.tolist(), T.grad, t.data.tolist()) == ([1.0, 2.0], None, [[1.0, -2.0], [3.0, 4.0]])


OF_METHODS = {
    "gradients": 'x.flatten(); x.flatten("F"); x.reshape(3, 2, order="F"); x.real; x.reshape((-1, 2), order="C")',
    "constants": "x.imag; round({x/x, 1}); (x > 0).flatten(); {c/c.sum()/c.astype(np.float32)}.nbytes"
    "; {c/c.sum()/(c > 0)}.tolist()",
}


@pytest.mark.parametrize(("what", "text"), [(what, text) for what in OF_METHODS for text in calls(OF_METHODS[what])])
def test_methods_of_numpys_arrays_do_what_they_do_there(what, text):
    f, x = eval(f"lambda x, c: {text}", {"np": np}), np.array([[3.0, -1.0, 2.0], [0.5, 4.0, -2.5]])
    out = f(Tensor(x, requires_grad=True), Tensor(x))
    expected = eval(text, {"np": np, "x": x, "c": x, "round": np.round})
    assert repr(data_of(out)) == repr(expected)
    assert np.shares_memory(expected, x) or not np.shares_memory(data_of(out), x)  # a copy where NumPy makes one
    assert getattr(out, "requires_grad", False) == (what == "gradients")
    assert what == "constants" or gradcheck(lambda x: f(x, x), x)


OF_INTEGERS = """
    np.select([n > 1], [n], -n); np.meshgrid(n, n)[1]; np.{append/convolve/searchsorted}(n, n); np.interp(n, n, n * n)
    np.linalg.lstsq(np.diag(n), n)[0]; n * 2 if np.isrealobj(n) else n
    """


@pytest.mark.parametrize("text", calls(OF_INTEGERS))
def test_integers_under_jit_are_elements_and_no_lengths(text):
    f, n = eval(f"lambda n: {text}", {"np": np}), np.array([1, 2, 4])
    np.testing.assert_array_equal(jit(f)(n), f(n), strict=True)


def test_masks_under_jit_are_refused_where_a_shape_depends_on_them():
    x, by_name = np.arange(4.0), lambda x: np.compress(condition=x > 1, a=x)
    for f in (lambda x: np.compress(x > 1, x), by_name, lambda x: np.delete(x, x > 1)):
        for g in (f, grad(lambda x, f=f: f(x).sum())):
            with pytest.raises(TypeError, match="shape depends on values"):
                jit(g)(x)
    with pytest.raises(TypeError, match=r"cannot follow an index: .* np\.sum\(np\.where\(mask, x, 0\)\)"):
        jit(grad(lambda x: np.sum(x, where=x > 2)))(x)
    assert jit(lambda x: np.compress([True, False], x))(x) == [0.0]


@pytest.mark.parametrize(("name", "call"), params(REFUSED))
def test_what_numpy_refuses_is_refused(name, call):
    with pytest.raises(Exception):  # noqa: B017, PT011
        call.of(named(name), call.draw())
    with pytest.raises((TypeError, ValueError, IndexError, np.linalg.LinAlgError)):
        pytest.fail(f"it gave {call.of(named(name), leaves_of(call.draw()))}")


NO_UFUNCS = [name for name in CATALOGUE if name not in OF_THIS_FILE and not isinstance(named(name), np.ufunc)]


@pytest.mark.parametrize("name", NO_UFUNCS)
def test_arguments_by_position_by_keyword_and_with_defaults_give_the_same(name):
    function, named_too = named(name), inspect.Parameter.POSITIONAL_OR_KEYWORD
    for call in CATALOGUE[name]:
        arrays, (args, options) = call.draw(), call.arguments
        try:
            bound = inspect.signature(function).bind(*args, **options)
        except ValueError:  # of functions in C that do not tell their parameters
            return
        kinds = {key: parameter.kind for key, parameter in bound.signature.parameters.items()}
        ways = [Call(*bound.args, **bound.kwargs)]
        if inspect.Parameter.VAR_POSITIONAL not in kinds.values():
            by_keyword = {key: x for key, x in bound.arguments.items() if kinds[key] == named_too}
            rest = [x for key, x in bound.arguments.items() if kinds[key] == inspect.Parameter.POSITIONAL_ONLY]
            ways.append(Call(*rest, **(by_keyword | bound.kwargs)))
        bound.apply_defaults()
        ways.append(Call(*bound.args, **bound.kwargs))
        expected, gradients = backward(name, call, arrays)
        for way in ways:
            assert way.drawn == call.drawn
            out, found = backward(name, way, arrays)
            assert_same(out, tree_map(data_of, expected))
            np.testing.assert_equal(found, gradients)


def test_a_way_to_call_a_function_is_looked_at_once(monkeypatch):
    t, looks = leaf(np.ones((2, 3))), []
    signature = inspect.signature
    for _ in range(2):
        for f in (np.sum, np.mean, np.max, np.min):
            f(t, axis=1, keepdims=True)
            f(t, keepdims=True, axis=0)
            f(t, axis=None, keepdims=False)  # NumPy's defaults
        assert looks == []
        monkeypatch.setattr(inspect, "signature", lambda f: looks.append(f) or signature(f))


def error_of(call: Call, function: Any, arrays: Any) -> str:
    try:
        call.of(function, arrays)
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


HALVES = """add power exp tanh arctan2 sigmoid where clip sum mean max prod std nanmean nanvar nanmax quantile gradient
    convolve sinc linspace copysign select median cumsum concatenate stack matmul einsum linalg.norm pad getitem sort"""
IN_FLOATS = [(name, np.float32) for name in CATALOGUE if name != "astype"]


@pytest.mark.parametrize(("name", "dtype"), [*IN_FLOATS, *[(name, np.float16) for name in HALVES.split()]])
def test_float32_and_float16_stay_what_they_are_in_every_rule(name, dtype, monkeypatch):
    fit, seen, eps = tinygrad_lite._fit, set(), float(np.finfo(dtype).eps)
    tolerance = 2e-4 if dtype == np.float32 else 0.05
    monkeypatch.setattr(tinygrad_lite, "_fit", lambda g, *args: seen.add(g.dtype) or fit(g, *args))
    for call in CATALOGUE[name]:
        arrays, cast = call.draw(), call.cast(dtype)
        _, expected = backward(name, call, arrays)
        arrays = [a.astype(dtype) if is_float(a) else a for a in arrays]
        if name == "linalg.norm" and "float16 is unsupported" in error_of(cast, named(name), arrays):
            continue  # by singular values, which NumPy has not of float16
        plain = tree_leaves(cast.of(named(name), arrays))
        seen.clear()
        out, gradients = backward(name, cast, arrays, dtype)
        for x, y in zip(tree_leaves(out), plain, strict=True):
            assert (x.shape, x.dtype) == (np.shape(y), y.dtype)
            np.testing.assert_allclose(data_of(x), y, rtol=80 * eps, atol=8 * eps)
        for g, h in zip(gradients, expected, strict=True):
            assert g.dtype == dtype
            np.testing.assert_allclose(g, h, rtol=tolerance, atol=tolerance)
        if all(x.dtype == dtype for x in plain):  # no operand made NumPy itself take a wider one
            nodes = nodes_of(*required(tree_leaves(out)))
            assert seen | {node[4].dtype for node in nodes if node[1]} <= {np.dtype(dtype)}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_are_numpys_and_carry_no_gradient(name):
    function = named(name)
    for call in CONSTANTS[name]:
        arrays = call.draw()
        plain = call.of(function, arrays)
        out = call.of(function, [leaf(a) if is_float(a) else leaf(a - 0.5) > 0 for a in arrays])
        assert type(out) is (type(plain) if not hasattr(plain, "dtype") else Tensor)
        for x, y in zip(tree_leaves(out), tree_leaves(plain), strict=True):
            if isinstance(x, Tensor):
                assert (x.shape, x.dtype, x.requires_grad) == (np.shape(y), y.dtype, False)
        if name != "empty_like":
            np.testing.assert_equal(tree_map(data_of, out), plain)


def refusal(function: Any) -> str:
    """The error of the first call whose arguments NumPy lets Tensors see, or what it gave instead of an error."""
    t, m = leaf([1.0, 2.0, 3.0]), leaf(np.eye(3))
    attempts: list[Any] = [(t,), (m,), (t, t), (m, t), (t, 1), (t, t, t), (t, [1], 1), ([t, t],), ([t, t], [t, t])]
    attempts += [(1, t, t), (t, 1, 1.0), (len, 0, t), (len, t, 0), (t, t, 1, t), (t, t, t, t), (t, [t > 0], [len])]
    calls = [(args, {"like": t}) for args in ((3,), (3, 3), ([1.0],), (len, 3), ("1", float))]
    calls += [(args, {}) for args in [*attempts, ("i,i", t, t), ("file", t)]]
    for args, options in calls:
        try:
            return f"{args} gave {function(*args, **options)!r}"
        except Exception as error:
            if isinstance(error, TypeError) and "defvjp" in str(error):
                return str(error)
    return "no call got through"


def test_functions_without_a_row_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(FUNCTIONS) > 350
    for function in [f for f in FUNCTIONS if f not in ROWS]:
        # Of NumPy's string ufuncs some have no public name and tell no module.
        name = r"(np\.)?[\w.]*?" + function.__name__.lstrip("_").removesuffix("_with_like")
        assert re.match(rf"{name} has no derivative rule: add one with defvjp\({name}, ", refusal(function))
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("ufunc", sorted(get_overridable_numpy_ufuncs(), key=str), ids=lambda f: f.__name__)
def test_methods_and_options_of_ufuncs_are_refused_by_name(ufunc):
    t = leaf([1.0, 2.0, 3.0])
    methods = {"reduce": (t,), "accumulate": (t,), "outer": (t, t), "at": (t, [0], t), "reduceat": (t, [0])}
    name = rf"(np\.)?[\w.]*{ufunc.__name__.lstrip('_')}"
    is_known = ufunc.nin == 2 and ufunc.nout == 1 and not ufunc.signature  # the others NumPy mostly has not
    for method, args in methods.items():
        errors = TypeError if is_known else (TypeError, ValueError, RuntimeError)
        with pytest.raises(errors, match=rf"{name}\.{method} " if is_known else None):
            getattr(ufunc, method)(*args)
    out = (np.ones(3),) * ufunc.nout
    options = {"out": out, "casting": "unsafe", "order": "F", "dtype": np.float32, "subok": False}
    options |= {"axis": 0, "keepdims": True} if ufunc.signature else {"where": np.array([True, False, True])}
    for option, value in options.items():
        with pytest.raises(TypeError, match=f"{name} with {option}= "):
            ufunc(*[t] * ufunc.nin, **{option: value})


OPTIONS: dict[str, Any] = {
    **{"casting": "unsafe", "copy": False, "correction": 1, "dtype": np.float32, "initial": 2.5, "kind": "stable"},
    **{"mean": 0.5, "mode": "clip", "order": "F", "overwrite_input": True, "stable": True, "subok": True},
    **{"constant_values": 3.0, "returned": True, "prepend": 1.5, "append": 1.5, "retstep": True, "hermitian": True},
    **{"upper": True, "rtol": 0.9},
}
UNTOLD = {"concatenate": "out dtype casting", "dot": "out", "einsum": "dtype order casting out"}
UNTOLD |= {"pad": "constant_values"}


@pytest.mark.parametrize("name", NO_UFUNCS)
def test_options_that_no_rule_sees_are_refused_or_right(name):
    function, call = named(name), next(call for call in CATALOGUE[name] if not call.arguments[1])
    arrays, told = call.draw(), {*UNTOLD.get(name, "").split()}
    with contextlib.suppress(ValueError):  # of functions in C that do not tell their parameters
        told |= {*inspect.signature(function).parameters}
    if name == "full_like":
        told.remove("dtype")  # as float32 is too coarse for differences
    values = {option: [value] for option, value in OPTIONS.items()}
    values["where"] = [np.arange(arrays[0].size).reshape(arrays[0].shape) != 1]
    if "out" in told:
        plain = np.array(call.of(function, arrays))
        values["out"] = [plain, Tensor(plain), leaf(plain)]
    for option in sorted(told & {*values}):
        for value in values[option]:
            more = Call(*call.arguments[0], **{option: value})
            more.has_second = False
            if message := error_of(more, function, leaves_of(arrays)):
                assert re.match(rf"np\.[\w.]+ .*\b{option}\b", message)
                if option != "out" and not error_of(more, function, arrays):  # without gradients it is as in NumPy
                    assert_same(more.of(function, [*map(Tensor, arrays)]), more.of(function, arrays))
            else:
                assert option != "out"
                check(name, more)


# --- Conventions where a derivative is a choice -----------------------------------------------------------------------


# Functions of t, the numbers at which they are looked at, and their gradients there. (What clip limits to the upper
# limit is that one's, also where it is the lower one or below, whatever else is equal.)
CONVENTIONS = """
    abs(t) at 0: 0; relu(t) at [0, -1, 2]: [0, 0, 1]; sigmoid(t) at [-800, 0, 800]: [0, 0.25, 0]
    t.clip(-1, 1) at [-1, 1, 2, -2]: [1, 1, 0, 0]; t.clip(max=1) at [-5, 2]: [1, 0]; t.clip(min=1) at [-5, 2]: [0, 1]
    np.copysign(t, [1, -1, -1]) at [0, -2, 2]: [0, 1, -1]; np.copysign(2.0, t) at [0, -2]: [0, 0]
    np.interp(t, [0, 1, 2], [0, 1, 3]) at [-1, 0.5, 1, 2, 3]: [0, 1, 1, 2, 0]; np.{maximum/minimum}(t, 1) at 1: 0.5
    t.max() at [1, 3, 3]: [0, 0.5, 0.5]; t.min(axis=0) at [1, 1, 3, 1]: [1 / 3, 1 / 3, 0, 1 / 3]
    t**2 at [0, -3]: [0, -6]; t**3 at [0, -2]: [0, 12]; t**1 at [0, -2]: [1, 1]; t**-1 at [-2, 4]: [-1 / 4, -1 / 16]
    t**0 at [0, -2]: [0, 0]; t**0.0 at [0, 5]: [0, 0]; 0.0**t at [1, 2]: [0, 0]; 0**t at [0, 2]: [0, 0]
    t ** np.array([0, 1, 2]) at [0, 0, 0]: [0, 1, 0]; t ** Tensor([3, 2]) at [-2, -3]: [12, -6]
    2**t at [0, 3]: [math.log(2), 8 * math.log(2)]; t * 2 at [nan, inf, -inf, 1]: [2, 2, 2, 2]
    np.tanh(t) at [inf, -inf]: [0, 0]; np.exp(t) at nan: nan; np.std(t) at [2, 2]: [0, 0]; np.std(t) at [2]: [0]
    t.prod() at [0, 2, 3]: [6, 0, 0]; t.prod() at [0, 2, 0]: [0, 0, 0]
    t.prod() at [-1, 2, 3, 4, 5]: [120, -60, -40, -30, -24]; np.{nanmax/nanmin}(t) at [1, 1, nan]: [0.5, 0.5, 0]
    np.linalg.norm(t, {0.5/1/1.5/2/3/-1/-2/inf}) at [0, 0]: [0, 0]; np.linalg.norm(t, 0) at [1, 0]: [0, 0]
    np.linalg.norm(t, {0.5/1/1.5/2/3/inf}) at [0, -4, 0]: [0, -1, 0]; np.nanstd(t) at [0, 0]: [0, 0]
    np.linalg.norm(t, {-1/-2}) at [0, 3, -4]: [0, 0, 0]; np.hypot(t[0], t[1]) at [0, 0]: [0, 0]
    np.linalg.matrix_power(t, 0) + t at [[0, 1], [2, 3]]: np.ones((2, 2))
    np.nanstd(t, 1) at [[1, nan, 4], [nan, 3, 3]]: [[-0.5, 0, 0.5], [0, 0, 0]]
    np.sum(t, where=[True, True, False]) at [1, 5, nan]: [1, 1, 0]; np.sum(t, where=t > 2) at [1, 5, nan]: [0, 1, 0]
    np.mean(t, where=[True, True, False]) at [1, 5, nan]: [0.5, 0.5, 0]
    np.max(t, where=[True, True, False], initial=0) at [1, 5, nan]: [0, 1, 0]
    np.max(t, where=[True, True, False], initial=6) at [1, 5, nan]: [0, 0, 0]
    np.min(t, where=[True, True, False], initial=1) at [1, 5, nan]: [0.5, 0, 0]; np.clip(t, 3, 1) at [1, 2]: [0, 0]
    np.clip(t, -1, [1, 1, 1]) at [-2, 0.5, 3]: [0, 1, 0]; np.clip([-2, 0.5, 3], t, [1, 1, 1]) at -1: 1
    np.clip([-2, 0.5, 3], -1, t) at [1, 1, 1]: [0, 0, 1]; np.clip([0, 9], t, 1) at 5: 0; np.clip([2, 3], 0, t) at 0: 2
    np.clip([1, 2], 3, t) at 1: 2; np.array([0, 0, 2]) ** t at [2, 0, 3]: [0, 0, 8 * math.log(2)]
    t ** np.array([2, 0, 3]) at [0, 0, 2]: [0, 0, 12]; np.clip([-1, 2], t, 3) at -1: 0; np.clip([3, 1], 0, t) at 3: 0
    grad(grad(lambda x: x**t))(2.0) at 0: -0.25; grad(grad(lambda x: x**t))(2.0) at 1: 0.5
    np.linalg.{eigvalsh(t)/svd(t)[1]} ** 3 at 2 * np.eye(3): 12 * np.eye(3); np.linalg.norm(t, "nuc") at np.eye(3): t
    np.linalg.norm(t, 2) at np.eye(3): t / 3; np.linalg.norm(t * np.ones((3, 2)), "nuc") at 1: 6**0.5
    """
# Where NumPy warns, as of infinite slopes, with gradients as in PyTorch and as the README says.
WARNED = calls("""
    np.sqrt(t) at 0: inf; t**0.5 at 0: inf; np.log(relu(t)) at [0, 1]: [0, 1]
    np.nanvar(t, ddof={1/2}) at [3, nan]: [nan, nan]; np.nanvar(t, ddof=2) at [1, 2, nan]: [-inf, inf, nan]
    np.where(t > 0, np.log(t), 0) at [0, 1]: [nan, 1]
    np.where(t > 0, np.log(np.where(t > 0, t, 1)), 0) at [0, 1]: [0, 1]
    grad(lambda x: (x * t).mean() ** 2)(np.zeros(0)) @ np.zeros(0) at 1.5: 0
    np.cumprod(t, 1)[:, 0] at [[1, 1e200, 1e200], [1e-200, 1e-300, 0]]: [[1, 0, 0], [1, 0, 0]]
    """)
HESSIANS = """
    np.cumprod(t[:5]) @ (np.cumprod(t[:5]) + t[5:]) at [0, 2, 0, 3, 1, *[{0/1}] * 5]: running(t)
    np.cumprod(t[:5]) @ (np.cumprod(t[:5]) + t[5:]) at [{2, 0, 3, 5, 1/1, -2, 3, 4, 0/*[0] * 5}, *[1] * 5]: running(t)
    t[0] ** t[1] at [2, 0]: [[0, 0.5], [0.5, math.log(2) ** 2]]; np.sum(t * t) at [0, 0]: 2 * np.eye(2)
    {np.linalg.norm(t)/np.std(t)/np.nanstd(t)/np.hypot(t[0], t[1])}**2 at [0, 0]: np.zeros((2, 2))
    np.linalg.{norm(t)/norm(t, 2)/norm(t[None], 2.0, axis=1)[0]} at [3, 0, 4]: np.eye(3) / 5 - np.outer(t, t) / 125
    """


@hessian
def running(t: Any) -> Any:
    """The second derivatives of running products and their weights, one by one."""
    products = [math.prod([t[i] for i in range(j + 1)]) for j in range(5)]
    return sum(p * (p + t[5 + j]) for j, p in enumerate(products))


def sides(said: str) -> tuple[Any, Any, Any]:
    """The function, the array and what is expected there, of ``function of t at array: what``."""
    text, at, expected = re.fullmatch("(.*) at (.*): (.*)", said).groups()  # type: ignore[union-attr]
    t = np.array(eval(at), float)
    return function_of_t(text), t, eval(expected, globals(), {"t": t})


@functools.cache
def function_of_t(text: str) -> Any:
    return eval(f"lambda t: {text}", globals())


@functools.cache
def hessians(f: Any) -> list[Any]:
    return [*ways(hessian(f)), jacobian(grad(f))]


@pytest.mark.parametrize("said", [*calls(CONVENTIONS), *WARNED])
def test_convention(said):
    f, t, expected = sides(said)
    with warnings.catch_warnings(action="ignore") if said in WARNED else contextlib.nullcontext():
        np.testing.assert_allclose(grads(f, t)[1][0], expected, rtol=1e-13)


@pytest.mark.parametrize("said", calls(HESSIANS))
def test_second_derivatives_where_the_first_are_conventions(said):
    f, t, expected = sides(said)
    for second_derivatives in hessians(f):
        np.testing.assert_allclose(second_derivatives(t), expected, rtol=1e-12)


def product_of_all_but(x: Any, *left_out: int) -> Any:
    return np.prod(np.delete(x.astype(np.longdouble), left_out))


def products_of_all_others(x: Any) -> Any:
    return np.array([product_of_all_but(x, i) for i in range(x.size)])


def assert_close_where_it_can_be_told(found: Any, expected: Any) -> None:
    """The same to the precision of what was found, where the right number is 0 or a normal number of that dtype."""
    limits = np.finfo(found.dtype)
    told = (expected == 0) | ((np.abs(expected) > limits.tiny) & (np.abs(expected) < limits.max / 2))
    np.testing.assert_allclose(found[told], expected[told].astype(found.dtype), rtol=float(limits.eps) * 40)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), (2, 1), ()])
def test_products_with_a_gradient_are_numpys_bit_for_bit(dtype, axis):
    x = np.random.default_rng(5).uniform(0.8, 1.2, (9, 7, 13)).astype(dtype)
    for keepdims in (False, True):
        f = functools.partial(np.prod, axis=axis, keepdims=keepdims)
        for found in (f(leaf(x, dtype)).data, jit(f)(x), jvp(f, (x,), (x,))[0]):
            np.testing.assert_array_equal(found, f(x), strict=True)
    if not isinstance(axis, tuple):
        np.testing.assert_array_equal(np.cumprod(leaf(x, dtype), axis).data, np.cumprod(x, axis), strict=True)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("zeros", [0, 1, 2])
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid", "ignore:underflow")
def test_derivatives_of_products_are_right_by_division_and_where_factors_are_0_or_overflow_on_the_way(dtype, zeros):
    limits, rng = np.finfo(dtype), np.random.default_rng(zeros)
    gradients = [*ways(grad(np.prod)), grad(lambda x: np.sum(np.cumprod(x)[-1:]))]
    hessians, of_sums = ways(hessian(np.prod)), ways(grad(lambda x, c: np.cumprod(x) @ c))
    drawn = (10 ** (0.9 * np.log10(float(limits.max)) * rng.uniform(-1, 1, 7)) for _ in range(30))
    tame = [np.linspace(0.2, 1.5, 7) * unit for unit in (1, 1e-3, 1e3)]
    powers = 0.7 * limits.maxexp * np.array([[0, 0, 1, 0, 0, 1, 0], [1, -1, 1, -1, 1, -1, 0]])
    wild = np.exp2(np.concatenate([powers, -powers]))
    for sizes in itertools.chain(drawn, tame, wild):  # the sources of jit, made with the first, hold for all
        x = (sizes * rng.choice([-1, 1], 7)).astype(dtype)
        x[rng.permutation(7)[:zeros]] = 0
        for g in (gradient(x) for gradient in gradients):
            assert g.dtype == dtype
            assert_close_where_it_can_be_told(g, products_of_all_others(x))
        second = np.array([[(i != j) * product_of_all_but(x, i, j) for i in range(7)] for j in range(7)])
        size = np.abs(products_of_all_others(np.where(x == 0, 1, x)))
        rows = (size > limits.tiny) & (size < limits.max / 2)  # where the first derivative can be told
        for h in hessians:
            assert_close_where_it_can_be_told(h(x)[rows], second[rows])
        x, c = np.abs(x), rng.uniform(0.5, 2, 7).astype(dtype)
        sums = [sum(c[j] * product_of_all_but(x[: j + 1], i) for j in range(i, 7)) for i in range(7)]
        for gradient in of_sums:
            assert_close_where_it_can_be_told(gradient(x, c), np.array(sums))


SLOPES = {  # with closed forms, for numbers of much larger exponents
    "positive": """
        np.sqrt(x): 1 / np.sqrt(x) / 2; np.log(x): 1 / x; np.log2(x): 1 / x / np.log(np.longdouble(2))
        np.log10(x): 1 / x / np.log(np.longdouble(10)); np.log1p(x): 1 / (1 + x); x**1.5: 1.5 * np.sqrt(x)
        """,
    "inside": "np.arcsin(x): 1 / np.sqrt((1 - x) * (1 + x)); np.arctanh(x): 1 / ((1 - x) * (1 + x))",
    "above 1": "np.arccosh(x): 1 / np.sqrt(x - 1) / np.sqrt(x + 1)"
    "; 400 * (np.hypot(x, 400) - 500): x / np.hypot(x / 400, 1)",
    "any": """
        np.cbrt(x): 1 / (3 * np.cbrt(x) ** 2); np.tan(x): 1 + np.tan(x) ** 2; np.arctan(x): 1 / (1 + x * x)
        np.arcsinh(x): 1 / np.sqrt(1 + x * x); np.square(x): 2 * x; np.reciprocal(x): -1 / x / x; x**3: 3 * x * x
        np.sinh(x): np.cosh(x); np.cosh(x): np.sinh(x); np.exp(x): np.exp(x); np.arctan2(x, 1): 1 / (1 + x * x)
        np.arctan2(1, x): -1 / (1 + x * x); np.logaddexp(x, 1): 1 / (1 + np.exp(1 - x)); 3 / x: -3 / x / x
        200 * np.hypot(x / 400, 1): x / np.hypot(x, 400 + 0 * x) / 2
        np.arctan2(x / 2, data_of(x) / 2): 0.5 / x; np.arctan2(data_of(x) / 2, x / 2): -0.5 / x
        """,
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("domain", "said"), [(domain, said) for domain in SLOPES for said in calls(SLOPES[domain])])
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid", "ignore:underflow", "ignore:divide")
def test_slopes_are_right_at_every_magnitude_of_a_dtype(domain, said, dtype):
    f, slope = [eval(f"lambda x: {text}", globals()) for text in said.split(":")]
    limits = np.finfo(dtype)
    exponents = np.linspace(np.log10(np.longdouble(limits.tiny)), np.log10(np.longdouble(limits.max)) - 1e-3, 300)
    x = (np.longdouble(10) ** exponents).astype(dtype)
    x = {"any": np.concatenate([x, -x]), "above 1": x[x > 1], "inside": x[x < 1]}.get(domain, x)
    x = x[np.isfinite(f(x))]
    g, expected = grad(lambda x: np.sum(f(x)))(x), slope(x.astype(np.longdouble))
    assert_close_where_it_can_be_told(g, expected)
    assert (g[np.abs(expected) > 2 * limits.smallest_subnormal] != 0).all()


@pytest.mark.parametrize("text", calls("np.diag(np.linalg.cholesky(a)) ** 2; np.linalg.{eigh(a)[0]/eigvalsh(a)}"))
def test_gradients_by_a_symmetric_matrix_are_those_of_the_closed_form_in_the_triangle_that_is_read(text):
    log_det, a = eval(f"lambda a: np.sum(np.log({text}))", {"np": np}), CATALOGUE["linalg.inv"][0].draw()[0]
    a = a @ a.T
    np.testing.assert_array_equal(np.triu(grad(log_det)(a), 1), 0)
    assert gradcheck(log_det, a)
    slopes, inverse = grad(lambda x: log_det((x + x.T) / 2)), np.linalg.inv(a)  # of both triangles alike
    np.testing.assert_allclose(slopes(a), inverse, rtol=1e-10)
    v = np.random.default_rng(1).normal(size=(3, 3))
    v += v.T
    np.testing.assert_allclose(jvp(slopes, (a,), (v,))[1], -inverse @ v @ inverse, rtol=1e-8)


def of_eigh(number: Any) -> Any:
    """A function of a matrix, by the eigenvalues and eigenvectors of its symmetric part."""
    return lambda a: np.sum(number(*np.linalg.eigh((a + a.T) / 2)))


def test_of_equal_eigenvalues_functions_of_the_values_are_exact_and_those_of_the_vectors_not_finite():
    eye, weights = np.eye(3), np.arange(9.0).reshape(3, 3)
    # Which has a gradient, but no formula with vectors gives it where eigenvalues are equal.
    root = of_eigh(lambda values, vectors: vectors * np.sqrt(values) @ vectors.T * weights)
    distinct, expected = np.diag([1.0, 4.0, 9.0]), (weights + weights.T) / 2 / np.add.outer([1, 2, 3], [1, 2, 3])
    np.testing.assert_allclose(grad(root)(distinct), expected)
    with np.errstate(all="ignore"):
        assert not np.isfinite(grad(root)(eye)).any()
        assert not np.isfinite(hessian(of_eigh(lambda values, _: values**3))(eye)).any()
        for a in (eye, np.eye(3, 2) * [1, 0]):
            assert not np.isfinite(grad(lambda a: np.sum(np.linalg.svd(a, False)[0] ** 3))(a)).any()


def test_eigenvalues_of_opposite_signs_are_not_taken_for_equal():
    f = of_eigh(lambda values, vectors: vectors**4 * np.exp(values))
    for a in (np.array([[0.3, 1.0], [1.0, -0.3]]), np.array([[0.0, 1.0], [1.0, 0.0]])):
        np.testing.assert_allclose(grad(f)(a), central_differences(f, [a], 1.0)[0], atol=1e-8)
        assert gradcheck(grad(lambda a: f(a) ** 2), a)


LEFT, RIGHT = np.random.default_rng(0).normal(size=(50, 2)), np.random.default_rng(1).normal(size=(2, 3))
OF_RANK_2 = np.rint(9 * LEFT) @ [[1, 0, 1], [0, 1, 1]]  # exactly


@pytest.mark.parametrize(("a", "rank"), [
    *[(OF_RANK_2, 2), (OF_RANK_2.astype(np.float32), 2)],
    *[(np.eye(200, 2) * [1, 1e-14], 1), (np.eye(200, 2) * [1, 1e-13], 2)],  # beside 4.4e-14: eps times 200 rows
])  # fmt: skip
def test_matrices_without_full_rank_have_numpys_rank_and_least_squares(a, rank):
    b = np.random.default_rng(2).normal(size=len(a)).astype(a.dtype)
    out, plain = np.linalg.lstsq(leaf(a, a.dtype), b), np.linalg.lstsq(a, b)
    assert_same(out[1:3], plain[1:3])  # the residuals, if there are any, and the rank
    assert out[2] == rank
    tolerance = 1e-5 if a.dtype == np.float32 else 1e-10
    for x, y in zip(out, plain, strict=True):
        np.testing.assert_allclose(x.data, y, rtol=tolerance, atol=tolerance)


# --- Arrays of other libraries ----------------------------------------------------------------------------------------


class FetchedError(Exception):
    """An array of another library was computed, or made a NumPy array, before the user asked for it."""


def fetch(*args: Any, **options: Any) -> Any:
    raise FetchedError


nothing_is_fetched = functools.partial(dask.config.set, scheduler=fetch)


def boxed(tree: Any) -> Any:
    return tree_map(lambda x: Box(np.asarray(x)) if isinstance(x, (np.ndarray, np.generic)) else x, tree)


def unboxed(tree: Any) -> Any:
    return tree_map(lambda x: x.array if isinstance(x, Box) else x, tree)


class Box(np.lib.mixins.NDArrayOperatorsMixin):
    """An array that answers both protocols and does not become a NumPy array by itself."""

    def __init__(self, array: Any):
        self.array = array

    __array__ = fetch
    shape, ndim, size, dtype = (property(operator.attrgetter(f"array.{n}")) for n in ("shape", "ndim", "size", "dtype"))
    T = property(lambda self: boxed(self.array.T))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if not all(isinstance(x, (Box, np.ndarray, np.generic, int, float)) for x in inputs):
            return NotImplemented
        return boxed(getattr(ufunc, method)(*unboxed(inputs), **options))

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        if not all(issubclass(t, (Box, np.ndarray)) for t in types):
            return NotImplemented
        return boxed(function(*unboxed(args), **unboxed(options)))

    def __getattr__(self, name: str) -> Any:
        if name not in ("all", "astype", "max", "mean", "min", "reshape", "sum", "swapaxes", "transpose"):
            raise AttributeError(name)
        return lambda *args, **options: boxed(getattr(self.array, name)(*unboxed(args), **options))

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> Any:
        return boxed(self.array[unboxed(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.array[unboxed(index)] = unboxed(value)


def check_close(found: Any, expected: Any, rtol: float = 1e-10) -> None:
    """The same in NumPy's arrays, for which Dask's are all computed in one go."""
    computed = [dask.compute(tree_map(data_of, [*xs]), scheduler="sync")[0] for xs in (found, expected)]
    for x, y in zip(*unboxed(computed), strict=True):
        if isinstance(y, (np.ndarray, np.generic)):
            np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-12, strict=True)
        else:
            assert x == y


# --- Every function of the table --------------------------------------------------------------------------------------
# On arrays of other libraries: of Dask, whose arrays are in uneven chunks along several axes, and of Box.

RNG = np.random.default_rng(0)
SIZES = {"x": (5, 4), "y": (5, 4), "row": (4,), "col": (5, 1), "z": (), "c": (2, 3, 4), "w": (4, 3)}
LEAVES = {name: RNG.normal(size=shape) for name, shape in SIZES.items()}
PLAIN: dict[str, Any] = {"N": RNG.normal(size=(5, 4)), "W": RNG.normal(size=(4, 3)), "np": np}
PLAIN |= {"M": PLAIN["N"] > 0, "D": da.from_array(PLAIN["N"] > 0, 2), "Tensor": Tensor}


def as_numpy(x: Any, place: int = 0) -> Any:
    return np.array(LEAVES[x] if isinstance(x, str) else x)


def as_dask(x: Any, place: int = 0) -> Any:
    """In two chunks along every axis, cut elsewhere in each place of a call; but square matrices are in one."""
    array, place = as_numpy(x), [*LEAVES].index(x) if isinstance(x, str) else place
    cuts = [1 + (place + n) % (n - 1) if n > 1 else n for n in array.shape]
    chunks = [(cut, n - cut) if n > cut else (n,) for cut, n in zip(cuts, array.shape, strict=True)]
    return da.from_array(array, array.shape if array.shape[-2:-1] == array.shape[-1:] else tuple(chunks))


def as_box(x: Any, place: int = 0) -> Any:
    return Box(as_numpy(x))


# What docs/dask.md says stays lazy: the forward pass, gradients and gradients of gradients. The rest is an error.
LAZY = re.search(r"stay lazy:\n+```text\n(.*?)```", (HERE / "docs" / "dask.md").read_text(), re.DOTALL)[1].split()
LAZY += [*OF_THIS_FILE]  # slices, integer indices and methods too

# What is refused for an array of any other library, and not of Dask alone.
OF_ELEMENTS = """block compress delete gradient interp median meshgrid partition percentile quantile rot90 sort take
    take_along_axis"""

# Further ways to call: these stay lazy ...
LAZY_CALLS = """
    x.relu(); x.sigmoid(); x.astype(np.float32); [*x]; z * x + z; np.exp(z); z * N; x.flatten() * 2; x.clip(min=0)
    np.take(x, 1); np.concatenate([x[:2], y * x.sum(), x.reshape(1, 20)[:, :4]]).T.reshape(-1) ** 2; np.full_like(x, 2)
    (x - x.mean(0)) / x.std(0) @ w + row[:3]; np.where(x > x.mean(), x, col).max(1); x.reshape(-1); c.reshape(2, -1)
    x.T; N + x - 1 / (2.0**x + 1); -abs(x) * N; x**3 % 7; N.T @ x @ W; M ^ (x > 0) & ~(y > row); c @ row
    row @ w + row @ row
    """
# ... also those of integers, which never have gradients ...
LAZY_CALLS_OF_INTEGERS = """
    np.{fabs/square/reciprocal/deg2rad/var/ptp/copy}((9 * x).astype(int) | 1); np.fmax((x > 0) - 3, (9 * y).astype(int))
    """
# ... and these are errors, which say so, or are one at the latest of backward.
REFUSED_CALLS = {
    None: """
        x[[0, 2, 2]]; x[:, [1, 1]]; x[[0, 1], [2, 3]]; x[M]; x[x > 0]; x[M[:, 0]]; x.reshape(4, 5)
        np.linalg.inv(np.stack([x[:4], y[:4]])); np.einsum('ij', x, out=N); np.sum(x, out=N)
        """,
    "would fetch whole arrays to this machine": "np.{sort/median}(x); np.linalg.{det/slogdet}(x[:4])",
    "on this machine|would fetch": """
        Tensor(N, {0/1})[D]; Tensor(N, {0/1})[Tensor(D)]; Tensor(N, {0/1})[D[0, 0].astype(int)]
        np.{take/repeat}(Tensor(N[0], {0/1}), D[0].astype(int)); np.take_along_axis(Tensor(N, {0/1}), D.astype(int), 0)
        """,
}
REFUSALS = (TypeError, NotImplementedError, ValueError, AttributeError)  # the last one Dask's own, of solve


def of_any_library(name: str, call: Call) -> tuple[Any, list[Any]]:
    """A function of arrays, and the arrays. (What empty_like holds is nobody's business.)"""
    function = (lambda *x: np.isnan(np.empty_like(*x)) < 2) if name == "empty_like" else named(name)
    return lambda *xs: call.of(function, xs), call.draw()


def of_leaves(text: str) -> tuple[Any, list[str]]:
    """An expression as a function of the leaves in it, and their names."""
    code = compile(text, text, "eval")
    names = [name for name in LEAVES if name in code.co_names]
    return lambda *leaves: eval(code, PLAIN, dict(zip(names, leaves, strict=True))), names


def sum_of_squares(t: Any) -> Any:
    return (t * t + t).sum()


def results(case: Any, kind: Any, requires_grad: bool = True, number: Any = sum_of_squares) -> tuple[list[Any], ...]:
    """The leaves of a case, what it returns, and the first and second gradients of a number made of that."""
    f, arrays = case
    leaves = [Tensor(kind(x, i)) for i, x in enumerate(arrays)]
    for t in leaves:
        t.requires_grad = requires_grad and t.dtype.kind == "f"
    out = f(*leaves)
    outs = [*out] if isinstance(out, (tuple, list)) and isinstance(out[0], Tensor) else [out]
    open_outs = [t for t in outs if isinstance(t, Tensor) and t.requires_grad]
    gradients: list[Any] = []
    for i in range(2 if open_outs else 0):
        total = sum(map(number, open_outs), 0.0)
        if total.requires_grad:
            total.backward(create_graph=i == 0)
        gradients += [t.grad for t in leaves]
        open_outs = [t.grad for t in leaves if t.grad is not None]
        for t in leaves:
            t.grad = None
    return leaves, outs, [g.data if isinstance(g, Tensor) else g for g in gradients]


def check_lazy(case: Any, kind: Any, expected: Any) -> None:
    """Nothing is computed, gradients are like their leaves, and what comes out of it all is what NumPy says."""
    with nothing_is_fetched():
        leaves, outs, gradients = results(case, kind)
        constants = results(case, kind, requires_grad=False)[1]
    _, expected_outs, expected_gradients = expected
    array = type(leaves[0].data)
    assert all(type(t.data) is array for t in (*outs, *constants) if isinstance(t, Tensor))
    for g, t in zip(gradients, leaves * 2, strict=False):
        if g is not None:
            assert (type(g), g.shape, g.dtype) == (array, t.shape, t.dtype)
    check_close([*outs, *constants, *gradients], [*expected_outs, *expected_outs, *expected_gradients])


EVERYWHERE = {name: [call for call in CALLS[name] if call.is_everywhere] for name in sorted(CALLS)}


def refusals(name: str, kind: Any) -> dict[Call, Exception]:
    """The calls of a function that do not stay lazy, with the errors, for users to read, that must say so."""
    refused: dict[Call, Exception] = {}
    for call in EVERYWHERE[name]:
        case = of_any_library(name, call)
        expected = results(case, as_numpy)
        try:
            check_lazy(case, kind, expected)
        except REFUSALS as error:
            refused[call] = error
    return refused


@pytest.mark.parametrize("name", shared_out(EVERYWHERE))
def test_the_list_of_lazy_functions_says_which_stay_lazy_in_dask_and_which_are_errors(name):
    refused = refusals(name, as_dask)
    assert not refused if name in LAZY else refused


@pytest.mark.parametrize("name", EVERYWHERE)
def test_functions_work_with_any_array_that_answers_the_protocols_or_say_that_they_need_its_elements(name):
    refused = refusals(name, as_box)
    assert [*refused] == (EVERYWHERE[name] if name in OF_ELEMENTS.split() else [])
    for error in refused.values():
        assert re.fullmatch(r"\S+ would need the elements of an array of another library on this machine.*", str(error))


@pytest.mark.parametrize("said", shared_out([*EVERYWHERE, *calls(LAZY_CALLS)[::3]]))
def test_gradients_of_numpy_leaves_are_lazy_where_dask_arrays_come_later_or_the_function_is_an_error(said):
    case = of_any_library(said, EVERYWHERE[said][0]) if said in CALLS else of_leaves(said)
    expected_gradients = results(case, as_numpy)[2]
    try:
        with nothing_is_fetched():
            gradients = results(case, as_numpy, number=lambda t: ((t * t + t) * da.ones(t.shape)).sum())[2]
    except REFUSALS:
        assert said in CALLS
        assert said not in LAZY or said == "linalg.solve"  # which does not take NumPy's arrays beside Dask's
    else:
        assert {type(g) for g in gradients} <= {da.Array, type(None)}
        check_close(gradients, expected_gradients)


@pytest.mark.parametrize("kind", [as_dask, as_box])
@pytest.mark.parametrize("text", shared_out(calls(LAZY_CALLS + LAZY_CALLS_OF_INTEGERS)))
def test_methods_and_longer_expressions_stay_lazy(text, kind):
    check_lazy(of_leaves(text), kind, results(of_leaves(text), as_numpy))


def test_what_swallows_a_tensor_or_needs_numpys_arrays_is_an_error_and_no_gradient_of_0():
    X, w = da.ones((6, 2), chunks=(3, 2)), np.ones(2)
    for f in (lambda w: np.mean(X.dot(w)), lambda w: da.mean(X @ w), lambda w: da.where(X > 0, w, 0).sum()):
        for derivative in (grad, value_and_grad, jacobian):
            with pytest.raises(TypeError, match=r"no gradient can be followed .* call np.dot|takes no dtype|no fields"):
                derivative(f)(w)
    fast = jit(lambda w, X: np.mean(X @ w))  # noqa: N803
    for call in (lambda: fast.source(w, X), lambda: fast.lower(w, X), lambda: jit(lambda w: np.mean(X @ w))(w)):
        with pytest.raises(TypeError, match="generates code for NumPy's arrays: call f itself"):
            call()
    assert dask.compute(fast(w, X)) == (2.0,)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(("match", "text"), [(m, text) for m in REFUSED_CALLS for text in calls(REFUSED_CALLS[m])])
def test_what_dask_cannot_do_lazily_is_an_error_that_says_so(match, text, requires_grad):
    may_work, error = not match and not requires_grad, TypeError if match else REFUSALS
    for where in (nothing_is_fetched(), warnings.catch_warnings(action="ignore")):  # or Dask fetches, and warns
        with where, contextlib.suppress(*REFUSALS) if may_work else pytest.raises(error, match=match):
            results(of_leaves(text), as_dask, requires_grad)


@pytest.mark.parametrize("text", ["np.var(t @ w, 0).sum()", "((t @ w) ** 2).mean()", "np.prod(t, 0).sum()"])
def test_shapes_that_dask_does_not_know_are_errors_and_not_nan(text):
    x, w = da.from_array(LEAVES["x"], 2), leaf(PLAIN["W"])
    t = Tensor(x[x[:, 0] > 0], requires_grad="prod" in text)
    with nothing_is_fetched(), pytest.raises(ValueError, match=r"nan|NaN"):
        eval(text, {"np": np, "t": t, "w": w}).backward()
    assert w.grad is None


def test_filters_of_warnings_are_as_before_after_threads_worked_with_other_arrays_at_the_same_time():
    class Slow(Box):
        def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
            time.sleep(0.001)
            return super().__array_ufunc__(ufunc, method, *inputs, **options)

    before = [*warnings.filters]
    in_threads(lambda _: [np.exp(Tensor(Slow(np.ones(2)))) for _ in range(20)], 4)
    assert warnings.filters == before


# --- Gradients of functions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("derivative", [grad, value_and_grad, jacobian, hessian])
@pytest.mark.parametrize("wrong", [
    leaf([1.0, 2.0]), leaf(3.0), Tensor(0), 3.0, np.float32(1.0), np.ones(2), np.array([0, 1]), "y", True, np.True_,
    None, (0, "y"), [0, True], (leaf(1.0),), {"a": 0.5}, range(2), len, slice(1), pd.Series([1.0]), da.ones(2),
], ids=lambda x: type(x).__name__)  # fmt: skip
def test_an_argument_in_the_place_of_argnums_is_refused_at_once(derivative, wrong):
    with pytest.raises(TypeError, match=rf"not {type(wrong).__name__}: write grad\(f\)\(x\), or grad\(f, argnums=0\)"):
        derivative(lambda x, y: (x * y).sum(), wrong)
    if not callable(wrong):
        with pytest.raises(TypeError, match=rf"not {type(wrong).__name__}: write grad\(f\)\(x\)"):
            derivative(wrong)  # as in PyTorch's grad(loss, w)


Pair = collections.namedtuple("Pair", "x y")
XY, YX = [Pair(np.array(x, np.float32), np.array(y, float)) for x, y in ([(2, 3), (5, 7)], [(5, 7), (2, 3)])]
WB = collections.defaultdict(list, w=np.ones(2), b=np.full(2, 5.0))  # which functions may change
BW = collections.defaultdict(list, w=np.full(2, 5.0), b=np.ones(2))
# What derivatives are, exactly: NumPy's arrays in the shape, the dtype and the structure of the arguments.
DERIVATIVES = {
    "nested ones do not confuse variables": """grad(lambda x: x * grad(lambda y: x + y)(x))(2.0) gives 1.0
    grad(lambda x: grad(lambda y: x * y)(3.0))(2.0) gives 1.0; jvp(lambda x: x**3, (3.0,), (leaf(2.0),))[0] gives 27.0
    grad(lambda x: grad(lambda y: grad(lambda z: x * y * z * z)(y))(x))(3.0) gives 24.0
    grad(lambda x: {x * grad(lambda y: x * x * y)(3.0)/jvp(lambda y: y**3, (x,), (1.0,))[1]})(2.0) gives 12.0
    grad(grad(lambda x: (x * x * FS).sum()))(2.0) gives 10.0; no_grad()(grad(grad(lambda x: x**3)))(2.0) gives 12.0
    grad(lambda x: x * grad(lambda y: x * y)(x))(2.0) gives 4.0
    {/jit}(grad(grad(grad({np.sin/lambda x: np.exp(-x)}))))(0.0) gives -1.0
    jacobian(lambda v: jvp(grad(lambda x: (x**3).sum()), (np.ones(2),), (v,))[1])(np.ones(2)) gives 6 * np.eye(2)""",
    "they have its shape and dtype": """grad(lambda x: x**2)(np.float64(3.0)) gives 6.0
    value_and_grad(lambda x: (x * x).sum())(np.float32(INTS)) gives (np.float32(55), np.float32(2 * INTS))
    value_and_grad(lambda x: ({x.detach()/-(-x.detach())} * x * FS).sum())(3.0) gives (np.float32(45), 15.0)
    value_and_grad(lambda x: x.reshape(1, 1))(2.0) gives (np.array([[2.0]]), 1.0)
    grad(lambda x, scale=1.0: x * scale)(2.0, scale=3.0) gives 3.0
    grad(lambda x: x[0])(np.array([1.0])) gives np.ones(1); jacobian(lambda x: x * 2)(np.float32(3)) gives np.float32(2)
    jacobian(lambda x, a: a @ x, (0, 1))(ROW[0], MAT) gives (MAT, np.eye(2)[:, :, None] * ROW[0])""",
    "they have the structure of the argument": """grad(lambda p, x: x * 2)(dict(), 1.0) gives dict()
    grad(lambda p: sum(p, 0.0))([1.0, 2.0]) gives [1.0, 1.0]
    grad(lambda p: p.popitem()[1])(collections.OrderedDict(w=F, b=5.0)) gives collections.OrderedDict(w=0 * F, b=1.0)
    (grad(lambda p: {p.pop("w")/p.setdefault(0, p["w"])/len(p[0]) + p["w"]} @ p["b"])(WB), [*WB]) gives (BW, [*"wb"])
    grad(lambda p, q: p["w"][0] * q[0].x @ q[0].y, (0, 1))(dict(w=(1.0,)), [XY]) gives (dict(w=(31.0,)), [YX])
    hessian(lambda p: p["a"] ** 2 * p["b"])(dict(a=3.0, b=5.0)) gives dict(a=dict(a=10.0, b=6.0), b=dict(a=6.0, b=0.0))
    jvp(lambda p, x: p["w"].sum() * p["b"] * x, (dict(w=ONES, b=2), 3), (dict(w=INTS, b=1), 0.5)) gives (36.0, 114.0)
    jacobian(lambda x: (x.sum(), dict(twice=2 * x)))(np.ones(2)) gives (np.ones(2), dict(twice=2 * np.eye(2)))""",
    "argnums may be integers of any kind": """grad(lambda x, y: x * x * y, (-1, 0))(2.0, 5.0) gives (4.0, 20.0)
    {/jit}({grad/jacobian}(lambda x, y: x * y**2, np.{int64/uint8/int8}(1)))(1.0, 3.0) gives 6.0
    {/jit}({grad/jacobian}(lambda x, y: x * y**2, (np.{int64/uint8/int8}(1), np.int8(0))))(1.0, 3.0) gives (6.0, 9.0)
    {/jit}(value_and_grad(lambda x, y: x * y**2, (np.{int64/uint8/int8}(1), 0)))(1.0, 3.0) gives (9.0, (6.0, 9.0))
    {/jit}(hessian(lambda x, y: x * y**2, np.{int64/uint8/int8}(1)))(1.0, 3.0) gives 2.0
    {/jit}(hessian(lambda x, y: x * y**2, (np.int8(1), np.uint8(0))))(1.0, 3.0) gives ((2.0, 6.0), (6.0, 0.0))""",
    "by integers they are as by float64": """grad(lambda x: x * grad(lambda y: x * y)(3))(2) gives 4.0
    {/jit}(grad(lambda x: (x**2).sum()))({3/np.int8(3)/np.uint16(3)/Tensor(3)}) gives 6.0
    {/jit}(grad(lambda x: (x**2).sum()))({INTS/INTS.astype(np.uint8)/Tensor(INTS)}) gives 2.0 * INTS
    grad(lambda p: p["a"].sum() * p["b"][0])(dict(a=INTS, b=[2, F])) gives dict(a=2 * ONES, b=[15.0, np.float32(0)])
    hessian(lambda x: (x**3).sum())(INTS[0]) gives 6.0 * np.diag(INTS[0]); jacobian(np.sum)(INTS) gives ONES
    jvp(lambda x, y: x * y, (2, 3), (1, 10)) gives (6.0, 23.0); value_and_grad(lambda x: 1 / x)(2) gives (0.5, -0.25)
    value_and_grad(lambda x: (x * x * FS).sum())({3/3.0}) gives (np.float32(45), 30.0)""",
    "they are 0 of what depends on nothing": """jacobian(lambda x: x[:0])(np.ones(5)) gives np.zeros((0, 5))
    grad(lambda x: {3.0/Tensor(3.0)/(x > 0).all()})(ONES) gives 0 * ONES
    jvp(lambda x: 5.0, (1.0,), (1.0,)) gives (5.0, 0.0); jacobian(lambda x: ONES[0])(np.ones(5)) gives np.zeros((3, 5))
    jvp(lambda x: (x.sum(), np.argmax(x), 3), (ONES,), (ONES,)) gives ((6.0, np.array(0), np.array(3)), (6.0, 0.0, 0.0))
    value_and_grad(lambda x: 3)(1.0) gives (np.array(3), 0.0); jacobian(lambda x: (x, 3))(1.0) gives (1.0, 0.0)""",
}


@pytest.mark.parametrize(("what", "said"), [(what, said) for what in DERIVATIVES for said in calls(DERIVATIVES[what])])
def test_derivatives_are_what_is_written_here(what, said):
    derivative, expected = said.split(" gives ")
    assert_alike(eval(derivative), eval(expected), rtol=0, atol=0)


# The first, second and third derivative of order h**6, h**6 and h**4, by seven values at distances h.
STENCILS = [[-1, 9, -45, 0, 45, -9, 1], [2, -27, 270, -490, 270, -27, 2], [1, -8, 13, 0, -13, 8, -1]]


@pytest.mark.parametrize("name", CATALOGUE)
def test_derivatives_up_to_the_third_along_a_random_direction_agree_with_differences_of_numpys_values(name):
    for call in CATALOGUE[name]:
        arrays = call.draw()
        rng = np.random.default_rng(3)
        direction = [rng.normal(size=a.shape) if is_float(a) else 0 for a in arrays]
        weights = weights_of(call.of(named(name), arrays))

        def along(t: Any, call=call, arrays=arrays, direction=direction, weights=weights) -> Any:
            moved = [a + t * v if is_float(a) else a for a, v in zip(arrays, direction, strict=True)]
            return total(call.of(named(name), moved), weights)

        h, derivative = 2e-3, along
        values = [along(i * h) - along(0.0) for i in range(-3, 4)]
        for order, (stencil, divisor) in enumerate(zip(STENCILS, (60, 180, 8), strict=True), 1):
            derivative, difference = grad(derivative), np.dot(stencil, values) / (divisor * h**order)
            np.testing.assert_allclose(derivative(0.0), difference, rtol=1e-5, atol=1e-5)


def test_a_python_float_is_to_the_function_what_it_is_in_numpy():
    def f(a: Any) -> Any:
        assert (a > 0).dtype == bool
        assert (a.shape, a.ndim, a.size, a.dtype, type(a.item())) == ((), 0, 1, np.float64, float)
        assert a.data.shape == a.sum().shape == ()
        return (a[None] * np.ones(3)).sum() * a[()] * a[...]

    assert grad(f)(2.0) == 3 * 3 * 2.0**2


@pytest.mark.parametrize("op", [*OPERATORS, operator.mod, operator.floordiv])
def test_python_floats_stay_weak_and_their_arithmetic_is_numpys_with_gradients_and_under_jit(op):
    def f(x: Any, a: Any, b: Any) -> Any:
        return x * op(a, b), op(a, 3), op(3, a), op(a, 2.0) * x, op(x, a)

    x, compiled = np.array([1.5, -2.0], np.float32), jit(f)
    for a, b in ((2.5, 3.5), (1.0, 0.0), (0.0, -1.0), (-8.0, 1 / 3), (1e300, 1e300), (math.inf, math.nan)):
        n, args = np.float64(a), (x, a, b)
        with np.errstate(all="ignore"):
            expected = x * float(op(n, b)), op(n, 3), op(np.float64(3), a), x * float(op(n, 2.0)), op(x, a)
            for found in compiled(*args), jvp(f, args, args)[0]:
                assert_alike(found, expected, rtol=1e-6)
    assert compiled.cache_info().misses == 1


@pytest.mark.parametrize("text", calls("""
    value_and_grad(lambda x: w * x * x)(2.0); jacobian(lambda x: w * x)(np.ones(2)); grad(lambda x: x**3)(w)
    grad(lambda x: (x**3).sum())(w * np.array([1.0, 2.0])); jvp(lambda x: x**3, (w,), (1.0,))[1]
    jvp(lambda x: x**3, (3.0,), (w,))[1]; jvp(lambda x: w * x**3, (2.0,), (1.0,)); jit(lambda x: x**3 + 1)(w)
    """))  # fmt: skip
def test_what_depends_on_other_tensors_comes_back_as_a_tensor_and_leaves_those_alone(text):
    f, w = eval(f"lambda w: {text}", globals()), leaf(5.0)
    found = tree_leaves(f(w))
    assert {*map(type, found)} == {Tensor}
    assert w.grad is None
    sum([np.sum(t) for t in found]).backward()
    [slope] = central_differences(lambda w: sum(map(np.sum, tree_leaves(f(w)))), [w.data], 1.0)
    assert w.grad == pytest.approx(slope, rel=1e-8)
    with no_grad():
        assert {*map(type, tree_leaves(f(w)))} == {np.ndarray}


@pytest.mark.parametrize("text", calls("""
    np.tanh(x); x @ x.T; np.linalg.inv(x); x.sum(axis=0); np.prod(x); hessian(lambda y: np.prod(np.sin(y)))(x[0])
    np.sum(100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2)
    """))  # fmt: skip
def test_jvp_jacobian_and_hessian_agree_with_second_engine(text):
    engines = (np, hessian), (anp, autograd.hessian)
    f, second = [eval(f"lambda x: {text}", {"np": xp, "hessian": of}) for xp, of in engines]
    x, v = np.random.default_rng(0).normal(size=(2, 3, 3))
    (value, tangent), rows = jvp(f, (x,), (v,)), autograd.jacobian(second)(x)
    np.testing.assert_allclose(value, f(x), rtol=1e-14)
    np.testing.assert_allclose(jacobian(f)(x), rows, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(tangent, np.tensordot(rows, v, 2), rtol=1e-12, atol=1e-12)
    bends = autograd.hessian(lambda x: anp.sum(anp.sin(second(x))))(x)
    np.testing.assert_allclose(hessian(lambda x: np.sum(np.sin(f(x))))(x), bends, rtol=1e-12, atol=1e-12)


def test_hessian_vector_products_take_a_small_multiple_of_the_work_of_a_gradient():
    X, x, v = [np.random.default_rng(0).normal(size=shape) for shape in ((30, 8), 8, 8)]

    def f(w: Any) -> Any:
        return np.logaddexp(0, -np.tanh(X @ w) * w.sum()).mean()

    product = grad(lambda w: grad(f)(w) @ v)
    np.testing.assert_allclose(product(x), hessian(f)(x) @ v, rtol=1e-10)
    np.testing.assert_allclose(jvp(grad(f), (x,), (v,))[1], product(x), rtol=1e-10)
    assert engine_work(lambda: product(x))[1] < 8 * engine_work(lambda: grad(f)(x))[1]


@pytest.fixture(scope="module")
def of_scipy() -> Any:
    """What the block of rules for SciPy's functions in docs/functions.md defines."""
    text = (HERE / "docs" / "functions.md").read_text()
    (block,) = re.findall(r"```python\n(import math\n\n[^`]*?)print", text)
    names: dict[str, Any] = {}
    exec(block, names)
    return names


SCIPY = calls("""
    {erf/erfc/expit}({[-2.0, -0.3, 0.0, 1.5]/0.7}); {gammaln/digamma}({[0.3, 1.0, 7.5]/[-0.5, -1.3]})
    logit([0.1, 0.5, 0.8]); xlogy({[0.0, 1.0, -2.0], [0.5, 2.0, 3.0]/2.0, [[0.5], [3.0]]}); logsumexp([1000.0, 999.0])
    logsumexp([[0.3, -1.0, 2.0], [1.0, 1.0, 0.0]]{/, axis=0/, axis=-1, keepdims=True/, axis=(0, 1)/, keepdims=True})
    """)


@pytest.mark.parametrize("said", SCIPY)
def test_rules_for_scipys_functions_in_the_docs_agree_with_differences_at_first_and_second_order(said, of_scipy):
    name, _, arguments = said.partition("(")
    args, options = eval(f"Call({arguments}").arguments
    scipys = functools.partial(getattr(scipy.special, name), **options)
    function = functools.partial(of_scipy.get(name, scipys.func), **options)
    arrays, places = [np.array(x) for x in args], (*range(len(args)),)
    np.testing.assert_array_equal(function(*map(leaf, args)).data, scipys(*arrays))
    slopes = grad(lambda *xs: np.sum(np.sin(function(*xs))), places)
    assert gradcheck(function, *arrays, rtol=1e-5, atol=1e-7)
    for i in places:
        assert gradcheck(lambda *xs, i=i: slopes(*xs)[i], *arrays)
    single = [x.astype(np.float32) for x in arrays]
    assert function(*[leaf(x, np.float32) for x in single]).dtype == slopes(*single)[0].dtype == np.float32
    np.testing.assert_allclose(slopes(*single)[0], slopes(*arrays)[0], rtol=1e-3, atol=1e-4)
    if isinstance(function.func, np.ufunc) and name != "digamma":  # whose gradient calls a function that is none
        np.testing.assert_allclose(jit(slopes)(*arrays)[0], slopes(*arrays)[0], rtol=1e-12)
    if name == "logsumexp":
        with pytest.raises(TypeError, match=r"takes no b: "):
            function(leaf(arrays[0]), b=1.0)


# --- Random programs --------------------------------------------------------------------------------------------------
# What an operation of a program can be: of a variable a, or of two of them; smooth where values come to, and of shapes
# that fit, or another operation takes its place. The other letters are filled in as the shape of a allows.
OPERATIONS = calls("""
    a + b; a - b; a * b; a / (2 + b * b); (1 + a * a) ** np.tanh(b); -a; a ** 3; 1.5**a; (1 + a * a) ** -0.5
    np.add(a, N); np.subtract(N, a); np.multiply(a, N); np.divide(N, 2 + np.sin(a)); np.power(2 + np.sin(a), 1.3)
    np.remainder(a, 7.3); np.arctan2(a, 2 + b * b); np.{logaddexp/logaddexp2/maximum/minimum}(a, b); np.fmax(a, N)
    np.fmin(N, a); np.where(a > b, a - b, a * b); np.where(a < N, 1.0, a + N); np.clip(a, -0.6, 1.1)
    np.{abs/fabs/absolute}(a + 0.37); np.{exp/expm1/tan/sinh/cosh}(np.sin(a)); np.exp2(np.cos(a))
    np.log2(2 + np.cos(a)); np.{log/sqrt/log10/reciprocal}(1 + a * a); np.log1p(a * a); np.arccosh(1.5 + a * a)
    np.arctanh(0.9 * np.tanh(a)); np.{negative/sin/cos/tanh/arctan/arcsinh/square/nan_to_num/deg2rad/radians}(a)
    np.{rad2deg/degrees}(0.1 * a); np.arcsin(0.9 * np.sin(a)); np.arccos(0.9 * np.cos(a))
    np.{sum/mean/max/min}(a, axis=AXES, keepdims=KEEP); np.amax(a, axis=AXIS); np.amin(a)
    np.var(a, axis=AXIS, keepdims=KEEP); np.var(a); np.cumsum(a{/, axis=AXIS}); np.prod(1.5 + np.sin(a), axis=AXIS)
    np.prod(1.5 + np.cos(a)); np.std(np.concatenate([a, a + 1], AXIS), AXIS)
    np.linalg.norm(2 + np.sin(a){/, axis=AXIS}); np.sort(np.ravel(a)); np.diff(a, axis=AXIS); np.trace(a)
    np.diag(a + a.T); np.diagonal(a + np.swapaxes(a, -1, -2), 0, -1, -2); np.tril(a + np.swapaxes(a, -1, -2), K)
    np.triu(a * np.swapaxes(a, -1, -2), K); np.reshape(a, {SHAPE/-1}); np.{ravel/squeeze/transpose/flipud/fliplr}(a)
    np.squeeze(np.expand_dims(a, 0), 0); np.expand_dims(a, AXIS); np.transpose(a, ORDER); a.T; np.swapaxes(a, AXIS, 0)
    np.moveaxis(a, AXIS, 0); np.broadcast_to(np.expand_dims(a, 0), (2, *a.shape)); np.rot90(a, K)
    np.roll(a, K{/, AXIS}); np.{atleast_1d/atleast_2d/atleast_3d}(a); np.repeat(np.expand_dims(a, 0), 2, 0)
    np.repeat(np.ravel(a), 3); np.tile(np.ravel(a), {2/(2, 1)}); np.pad(a, 1, 'constant'); np.array_split(a, 2, AXIS)[0]
    np.vsplit(a, [1])[0]; np.split(a, [1], AXIS)[-1]; np.hsplit(np.atleast_2d(a), [1])[0]
    np.concatenate([b, a, N * b], AXIS); np.{concatenate/stack}([a, b], AXIS); np.{vstack/hstack/column_stack}([a, b])
    np.atleast_1d(a)[..., None]
    a[{0/-1/::-1/..., 0/:, 1:/None, 1:/:, ::2/[0, 0, -1]/..., [1, 0]/:1, -1/np.array([1, 0]), [0, 0]}]
    a[-1:][a[-1:] > -9]; a[np.array([[0, 1], [1, 1]])]; a @ b; np.{matmul/dot/inner}(a, b)
    np.outer(np.ravel(a), np.ravel(b)); a @ a.T; b @ b; np.tensordot(a, b, {1/0/((0,), (0,))})
    np.einsum('ij,jk->ik', a - b, (a * b).T); np.einsum('i,j->ij', a, b); np.einsum('ij,ij->j', a - b, a * b)
    np.einsum('ij->{/ji}', a); np.einsum('...i,...i->...', a - b, a * b); np.einsum('ijk,k', a, a[0, 1])
    np.kron(np.reshape(a, (-1, 1)), np.atleast_2d(np.ravel(b))); np.cross(a + b + np.ones(3), a * b - np.ones(3))
    np.linalg.inv(a @ a.T + 2 * np.eye(3)); np.linalg.det(2 * np.eye(2) + np.sin(a))
    np.linalg.slogdet(3 * np.eye(2) + np.sin(a))[1]
    np.linalg.solve(3 * np.eye(3) + np.sin(np.outer(np.ravel(a), np.ravel(a))), np.ravel(b))
    """)
INPUT_SHAPES = [[(), (3,), (2, 1)], [(3,), (2, 1), (2, 3)], [(2, 2), (2, 2), (1, 2)], [(2, 1, 3), (3, 1), (3, 3)]]
INPUT_SHAPES += [[(1,), (), (2,)]]
OPERANDS = ["0.7", "-1.2", "np.array([0.4, -0.9, 1.3])", "np.array([[0.8], [-0.3]])"]


class Program:
    """Lines such as ``v3 = np.sin(v1)``, that compute one number from the variables v0, v1 and v2."""

    def __init__(self, shapes: list[Any], seed: int, instructions: list[Any]):
        rng = np.random.default_rng(seed)
        self.inputs = [rng.normal(size=shape) for shape in shapes]
        self.lines = [f"v{i}  # of shape {shape}" for i, shape in enumerate(shapes)]
        values = {f"v{i}": x for i, x in enumerate(self.inputs)}
        for i, instruction in enumerate(instructions, len(shapes)):
            expression, values[f"v{i}"] = self.chosen(values, *instruction)
            self.lines.append(f"v{i} = {expression}")
        said = collections.Counter(re.findall(r"\bv\d+", "\n".join(self.lines)))
        self.lines.append("out = " + " + ".join([f"np.sum(np.sin({v}))" for v in values if said[v] == 1]))
        self.code = compile("\n".join(self.lines[3:]), "program", "exec")

    def chosen(self, values: dict[str, Any], operation: str, first: int, second: int, k: int) -> Any:
        """The operation, of the variables asked for if it can be, and else another; and its value."""
        names = [*values]
        a, b = names[~first % len(names)], names[~second % len(names)]
        for text in (operation, "a * np.tanh(b)", "np.arctan(a)"):
            expression = WORDS.sub(lambda word: fill(word[0], a, b, values[a].shape, k), text)
            try:
                value = np.asarray(eval(expression, {"np": np}, values))
            except (ValueError, IndexError, TypeError, np.linalg.LinAlgError):
                continue
            if 0 < value.size <= 40 and value.ndim <= 4:
                break
        if np.max(np.abs(value)) > 5:
            expression = f"np.arctan({expression})"
            value = np.arctan(value)
        return expression, value

    def run(self, xp: Any, *inputs: Any) -> Any:
        variables = {"np": xp} | {f"v{i}": x for i, x in enumerate(inputs)}
        exec(self.code, variables)
        return variables["out"]

    def __repr__(self) -> str:
        return "\n" + "\n".join(self.lines) + "\n"


WORDS = re.compile(r"\b(a|b|AXIS|AXES|KEEP|K|N|SHAPE|ORDER)\b")


def fill(word: str, a: str, b: str, shape: tuple[int, ...], k: int) -> str:
    n = len(shape)
    axes = [*range(-n, n)] or [0]
    choices: Any = {
        **{"a": [a], "b": [b], "AXIS": axes, "AXES": [None, *axes, tuple(range(n)), tuple(range(1 - n, 0))]},
        **{"KEEP": [False, True], "K": [1, 0, -1], "N": OPERANDS},
        "SHAPE": [(-1, 1), shape[::-1], (1, -1), (*shape[:1], -1)],
        "ORDER": [*itertools.islice(itertools.permutations(range(n)), 6)],
    }[word]
    return str(choices[k % len(choices)])


def decoded(number: int) -> tuple[str, int, int, int]:
    """An instruction: one number is the quickest to draw, and below 2**24 Hypothesis draws all of them alike."""
    return OPERATIONS[number // 12 // 36**2], number // 12 // 36 % 36, number // 12 % 36, number % 12


@st.composite
def random_programs(draw: Any) -> Program:
    numbers = draw(st.lists(st.integers(0, len(OPERATIONS) * 36**2 * 12 - 1), min_size=5, max_size=40))
    return Program(draw(st.sampled_from(INPUT_SHAPES)), draw(st.integers(0, 9)), [*map(decoded, numbers)])


@given(program=random_programs())
@settings(max_examples=1000 // PARTS, database=None)
def test_gradients_of_random_programs_agree_with_a_second_engine_and_with_jit(program):
    leaves = [Tensor(x, requires_grad=True) for x in program.inputs]
    out = program.run(np, *leaves)
    out.backward()
    expected = autograd.grad(lambda *inputs: program.run(anp, *inputs), (0, 1, 2))(*program.inputs)
    scale = max(np.max(np.abs(g)) for g in expected)
    for t, g in zip(leaves, expected, strict=True):
        np.testing.assert_allclose(t.grad, g, rtol=1e-9, atol=1e-9 * scale)
    compiled = jit(value_and_grad(functools.partial(program.run, np), (0, 1, 2)))
    if any("> -9]" in line for line in program.lines):  # a mask
        with pytest.raises(TypeError, match="shape depends on values"):
            compiled(*program.inputs)
        return
    for again in range(2):
        value, gradients = compiled(*program.inputs)
        np.testing.assert_allclose(value, out.data, rtol=1e-10)
        for t, g in zip(leaves, gradients, strict=True):
            np.testing.assert_allclose(g, t.grad, rtol=1e-9, atol=1e-11 * scale)
        assert compiled.cache_info().hits == again


# --- Tools ------------------------------------------------------------------------------------------------------------


def test_gradcheck_accepts_right_rules_and_names_what_is_wrong():
    assert gradcheck(lambda x, y, n: (x @ y) ** n, np.ones((2, 3)), [1.0, 2.0, 3.0], 2) is True
    assert gradcheck(lambda x: x * 2, np.float32(1.5)) is True
    assert gradcheck(lambda x: np.sign(x) * 1.0, 3.0) is True
    assert gradcheck(lambda x, y: x, 3.0, 4.0) is True
    assert no_grad()(gradcheck)(lambda x: x**2, 3.0) is True
    wrong = defvjp(lambda x: x**2, lambda g, out, x: g * np.array([2.0, 3.0, 2.0]) * x)
    pattern = r"argument 1, entry \(1,\): backward ([\d.]+), central differences ([\d.]+)"
    with pytest.raises(AssertionError, match=pattern) as caught:
        gradcheck(lambda a, b: wrong(b) + a, 1.0, np.array([1.0, 2.0, 3.0]))
    found, expected = map(float, re.fullmatch(pattern, str(caught.value)).groups())
    assert found / expected == pytest.approx(3 / 2)


def anomaly(f: Any, *args: Any) -> str:
    """What detect_anomaly says about a call."""
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError) as caught, detect_anomaly():
        f(*args)
    return str(caught.value)


ANOMALIES: list[tuple[Any, Any, str]] = [
    (lambda x: np.log(x).sum(), [1.0, 0.0], "np.log of shape (2,)"),
    (lambda x: x / (x - x), [[1.0, 2.0]], "np.divide of shape (1, 2) and (1, 2)"),
    (lambda x: np.sqrt(x), -1.0, "np.sqrt of shape ()"),
    (lambda x: np.exp(x) * 0, 1000.0, "np.exp of shape ()"),
    (lambda x: (x - x) / np.linalg.norm(x * 0), [3.0], "np.divide of shape (1,) and ()"),
    (lambda x: x ** np.array([0.5, 2.0]), [-1.0, 1.0], "np.power of shape (2,) and (2,)"),
    (lambda x: np.concatenate([x, x]).sum() * 1e308, [1.0, 2.0], "np.multiply of shape ()"),
    (lambda x: x.astype(np.float32) * np.float32(1e38), [3.0, 4.0], "np.multiply of shape (2,) and ()"),
    (lambda x: np.sqrt(x).sum().backward(), [0.0, 1.0], "argument 0 of np.sqrt of shape (2,)"),
    (lambda x: (x**0.5).backward(), 0.0, "argument 0 of np.power of shape ()"),
    (lambda x: (x * 1e200 * 1e200).backward(), 1e-300, "argument 0 of np.multiply of shape ()"),
    (lambda x: (x * 1e308 - x * -1e308).backward(), 0.0, "argument 0 of np.multiply of shape ()"),
    (lambda x: x.max() * np.arccos(x).sum(), [1.0, 2.0], "np.arccos of shape (2,)"),
    (lambda x: grad(lambda x: np.sqrt(x))(x), 0.0, "np.divide of shape () and ()"),
    (lambda x: jit(grad(lambda x: np.sqrt(x)))(x.data), 0.0, "argument 0 of np.sqrt of shape ()"),
    (lambda x: hessian(lambda x: (x**1.5).sum())(x.data), [0.0], "argument 0 of np.power of shape (1,)"),
]


@pytest.mark.parametrize(("f", "x", "what"), ANOMALIES)
def test_detect_anomaly_names_the_first_operation_the_shapes_and_the_line(f, x, what):
    said = anomaly(f, leaf(x))
    assert f"{what} made nan or infinity" in said
    assert said.endswith(f"see {__file__}, line {f.__code__.co_firstlineno}")


def test_detect_anomaly_names_the_line_of_the_forward_pass_for_a_gradient():
    def model(x: Any) -> Any:
        root = np.sqrt(x)
        return (root * 2).sum()

    with detect_anomaly():
        nested = anomaly(model(leaf([0.0])).backward)
    for said in (anomaly(lambda x: model(x).backward(), leaf([0.0])), nested):
        assert said.endswith(f"see {__file__}, line {model.__code__.co_firstlineno + 1}")
    said = anomaly(model(leaf([0.0])).backward)  # around backward alone
    assert re.search(r"argument 0 of np.sqrt of shape \(1,\) made .* put the forward pass inside as well", said)


@pytest.mark.parametrize(("f", "x"), [
    (lambda x: np.exp(np.where(MASK[0], x, -inf) - np.max(np.where(MASK[0], x, -inf))).sum() * x[0], [1.0, 2.0, 3.0]),
    (lambda x: (x * 2).sum(), [nan, inf]), (lambda x: np.exp(x).sum(), [inf, *np.ones(20_000)]),
    (lambda x: np.argmax(np.sqrt(x.detach() - 2)) + x.sum(), [4.0, 1.0]),  # which is not recorded
])  # fmt: skip
def test_detect_anomaly_lets_pass_what_was_infinite_before_and_changes_no_number(f, x):
    with np.errstate(all="ignore"):
        t, (value, [expected]) = leaf(x), grads(f, x)
        out = f(t)
        with detect_anomaly():
            out.backward()  # of what was computed outside
            found = grads(f, x)
    for g in t.grad, *found[1]:
        np.testing.assert_array_equal((found[0], *g), (value, *expected))


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:overflow")
def test_detect_anomaly_is_over_at_its_end_of_this_thread_alone_and_holds_no_graph(no_collector):
    fast, x, found = jit(grad(lambda x: np.sqrt(x))), leaf(0.0), list[float]()
    log_of_0 = lambda _=None: found.append(np.log(leaf(0.0)).item())  # noqa: E731
    with detect_anomaly(), detect_anomaly():
        pass
    log_of_0()
    with detect_anomaly():
        in_threads(log_of_0, 1)
        with no_grad():
            log_of_0()
            with detect_anomaly():
                assert not np.exp(x).requires_grad
        assert anomaly(np.log, x)
        with pytest.raises(FloatingPointError):
            np.log(x)
        value = weakref.ref(np.exp(leaf([1.0, 2.0])).data)
        assert value() is None
    log_of_0()
    assert (fast(np.float64(0)), *found) == (np.inf, *[-np.inf] * 4)
    assert engine_calls(lambda: -x) == 1  # the quick way again


def drawn(t: Any, names: Any) -> list[str]:
    """The nodes, by their labels and what they stand out by, and the edges, by the first lines of the labels."""
    [graph] = pydot.graph_from_dot_data(to_dot(t, names))  # another parser of Graphviz's language
    nodes = {n.get_name(): n.get_attributes() for n in graph.get_nodes() if n.get_name() != "node"}
    labels = {name: attributes["label"].strip('"').split("\\n") for name, attributes in nodes.items()}
    looks = [attributes.get("fillcolor") or attributes.get("shape", "box") for attributes in nodes.values()]
    edges = [f"{labels[e.get_source()][0]} -> {labels[e.get_destination()][0]}" for e in graph.get_edges()]
    return sorted([*edges, *["; ".join([*label, look]) for label, look in zip(labels.values(), looks, strict=True)]])


UNNAMED = np.array([0.0, 1.0])
DRAWINGS: list[tuple[Any, dict[str, Any], str]] = [
    # An array that is used twice is drawn once, and a number at every use.
    (lambda w, b, x: ((w * x + b - UNNAMED) ** 2 / 2 * UNNAMED).mean(),
     {"w": leaf(3.0), "b": leaf(-1.0), "x": np.array([1.0, 2.0])}, """
     w; () float64; 3.; gradient 4.; lightblue | b; () float64; -1.; gradient 2.; lightblue | 2; plain | 2; plain
     x; (2,) float64; [1., 2.]; plain | (2,) float64; [0., 1.]; plain | np.add; (2,) float64; [2., 5.]; box
     np.multiply; (2,) float64; [3., 6.]; box | np.subtract; (2,) float64; [2., 4.]; box | np.mean; () float64; 4.; box
     np.power; (2,) float64; [ 4., 16.]; box | np.divide; (2,) float64; [2., 8.]; box
     np.multiply; (2,) float64; [0., 8.]; box | w -> np.multiply | x -> np.multiply | np.multiply -> np.add
     b -> np.add | np.add -> np.subtract | (2,) float64 -> np.subtract | np.subtract -> np.power | 2 -> np.power
     np.power -> np.divide | 2 -> np.divide | np.divide -> np.multiply | (2,) float64 -> np.multiply
     np.multiply -> np.mean"""),
    # Options are shown, and no more than 12 values.
    (lambda x: (lambda y: (y * y).sum(axis=0, keepdims=True))(np.tanh(x)), {'the "x"\\': leaf(np.ones((40, 50)))}, r"""
     np.sum {'axis': 0, 'keepdims': True}; (1, 50) float64; box | np.multiply; (40, 50) float64; box
     np.tanh; (40, 50) float64; box | the \"x\"\\; (40, 50) float64; lightblue | the \"x\"\\ -> np.tanh
     np.tanh -> np.multiply | np.tanh -> np.multiply | np.multiply -> np.sum {'axis': 0, 'keepdims': True}"""),
    (lambda: leaf(np.ones(20_000)).sum(), {},
     "np.sum; () float64; 20000.; box | leaf; (20000,) float64; lightblue | leaf -> np.sum"),
    (lambda: Tensor(da.ones(5, chunks=2), requires_grad=True).sum(), {},
     "np.sum; () float64; box | leaf; (5,) float64; lightblue | leaf -> np.sum"),
    (lambda: leaf(2.0), {}, "leaf; () float64; 2.; gradient 1.; lightblue"),
    (lambda: Tensor([1.0, 2.0]), {}, "(2,) float64; [1., 2.]; plain"),
    (lambda: Tensor(2.0) * 3, {}, "() float64; 6.; plain"),
]  # fmt: skip


@pytest.mark.parametrize(("f", "names", "expected"), DRAWINGS)
def test_to_dot_draws_operations_leaves_and_constants_with_values_and_gradients(f, names, expected):
    t = f(*names.values())
    assert "gradient " not in to_dot(t, names)
    if t.requires_grad:
        t.sum().backward()
    assert drawn(t, names) == sorted(re.split(r" \| |\n\s*", expected.strip()))


def test_to_dot_draws_deep_graphs_whole():
    text = to_dot(functools.reduce(lambda t, _: np.sin(t), range(2_000), leaf(1.0)))
    assert (text.count("np.sin"), text.count(" -> ")) == (2_000, 2_000)


# --- jit --------------------------------------------------------------------------------------------------------------


def executed(source: str, *args: Any) -> Any:
    """What a generated module returns, with NumPy alone; what it reads from outside are variables of this file."""
    module: dict[str, Any] = {}
    exec(source, module)
    *_, function = module.values()
    outside = [*inspect.signature(function).parameters][len(args) :]
    return arrays_of(function(*args, *[data_of(globals()[name]) for name in outside]))


def body(source: str) -> str:
    """The lines of the function of a generated module, without comments."""
    return re.sub(r"\n\s*", "\n", re.sub(" *#.*", "", source).split("):", 1)[1]).strip()


def check_text(source: str) -> None:
    """A generated module reads as written by hand: nothing dead, nothing twice, nothing that changes nothing."""
    imports, function = ast.parse(source).body
    assert ast.unparse(imports) == "import numpy as np"
    nodes, lines = [*ast.walk(function)], source.splitlines()
    text_of = lambda node: lines[node.lineno - 1][node.col_offset : node.end_col_offset]  # noqa: E731
    names = [node for node in nodes if isinstance(node, ast.Name)]
    stored = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    assert stored <= {node.id for node in names if isinstance(node.ctx, ast.Load)}, "dead"
    computed = collections.Counter()
    for node in nodes:
        if isinstance(node, (ast.BinOp, ast.UnaryOp, ast.Call, ast.Compare, ast.Subscript)):
            inner = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} - {"np", "float"}
            text = text_of(node)
            computed[text] += bool(inner) and not text.startswith("np.copy")
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.Div, ast.Pow)):
            sides = [node.right, node.left] if isinstance(node.op, ast.Mult) else [node.right]
            assert not {"1", "1.0"} & {*map(text_of, sides)}, text
    assert [text for text, n in computed.items() if n > 1] == []
    assert re.findall(r"\n    \w+ = (?!.*  # ).*", source) == [], "without a comment"
    labels = [label for label in re.findall("# (d .*), \\(", source) if "..." not in label]
    assert len({*labels}) == len(labels), "a gradient of two lines"
    assert not any(re.search(r"d (\w+) / d \1$", label) for label in labels)


def arrays_of(tree: Any) -> Any:
    return tree_map(lambda x: np.asarray(x) if hasattr(x, "dtype") or type(x) is float else x, tree)


def assert_alike(found: Any, expected: Any, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    """The same structure, in it arrays of the same kinds with values that reordering explains, for numbers too."""
    expected = arrays_of(expected)
    assert type(found) is type(expected)
    assert repr(tree_map(type, found)) == repr(tree_map(type, expected))
    for p, q in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        if isinstance(p, np.ndarray):
            np.testing.assert_allclose(p, q, rtol, atol, strict=True)
        else:
            assert p == q


@pytest.mark.parametrize(("name", "call"), shared_out(params(CATALOGUE)))
def test_every_rule_under_jit_agrees_with_eager_at_first_and_second_order(name, call):
    arrays, others = call.draw(0), call.draw(3)
    free = [i for i, a in enumerate(arrays) if is_float(a)]
    n, weights = (*range(len(free)),), weights_of(call.of(named(name), arrays))

    def results(*xs: Any) -> Any:
        given = dict(zip(free, xs, strict=True))
        return call.of(named(name), [given.get(i, a) for i, a in enumerate(arrays)])

    flat = lambda *xs: total(results(*xs), weights)  # noqa: E731
    slopes = lambda *xs: sum([(g * (g + i)).sum() for i, g in enumerate(grad(flat, n)(*xs))])  # noqa: E731
    functions = [results, value_and_grad(flat, n), grad(slopes, n)]
    for f in functions if sum(map(np.size, weights)) else [results]:
        compiled, tolerance = jit(f), {"rtol": 1e-12, "atol": 1e-14} if f is results else {}
        for values in ([arrays[i] for i in free], [others[i] for i in free]):
            assert_alike(compiled(*values), f(*values), **tolerance)
        assert compiled.cache_info()[:2] == (1, 1)
        source = compiled.source(*values)
        check_text(source)
        assert not re.search(r"(?<![.\w])(?!float|np)\w+\(", body(source)), "a call of what is not NumPy's"


@pytest.mark.parametrize(("name", "call"), params({n: c for n, c in CONSTANTS.items() if n != "empty_like"}))
def test_constants_under_jit_are_numpys_or_refused(name, call):
    compiled = jit(lambda *xs: call.of(named(name), xs))
    if name in ("argwhere", "flatnonzero", "nonzero"):
        with pytest.raises(TypeError, match="shape depends on values"):
            compiled(*call.draw())
        return
    for arrays in call.draw(0), call.draw(3):
        found, expected = compiled(*arrays), call.of(named(name), arrays)
        for x, y in zip(tree_leaves(found), tree_leaves(expected), strict=True):
            np.testing.assert_array_equal(x, y, strict=True)
    check_text(compiled.source(*arrays))


def two_layers(W: Any, b: Any, V: Any, c: Any, X: Any, y: Any) -> Any:  # noqa: N803
    h = np.tanh(X @ W + b)
    error = h @ V + c - y
    return np.mean(error**2)


def scalar_step(w: Any, b: Any, x: Any, y: Any, lr: Any) -> Any:
    slope_w, slope_b = grad(lambda w, b: ((w * x + b - y) ** 2).mean(), (0, 1))(w, b)
    return w - lr * slope_w, b - lr * slope_b


def loss_of_outside(w: Any) -> Any:
    error = np.tanh(FEATURES @ w) - TARGET
    return np.mean(np.maximum(error, TARGET) ** 2)


MAT = np.array([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]])
COLUMN, ROW, F32 = np.arange(1.0, 4).reshape(3, 1), np.arange(4.0, 7).reshape(1, 3), np.array([0.5, -1, 2], np.float32)
FEATURES, TARGET = np.sin(np.arange(60.0)).reshape(20, 3), np.sin(np.arange(20.0))
WEIGHT, BIAS = leaf([1.0] * 3), leaf(2.0)
NETWORK = [np.cos(np.arange(math.prod(s))).reshape(s) for s in [(3, 16), (16,), (16, 1), (1,), (105, 3), (105, 1)]]
TEXTS: list[tuple[Any, Any, str]] = [
    (value_and_grad(two_layers, (0, 1, 2, 3)), NETWORK, ""),  # whose text stands in the README
    (scalar_step, (*map(np.float64, (0.0, 0.0, 1.0, 2.0)), 0.1), """\
slope_b = 2 * (w * x + b - y)
slope_w = slope_b * x
return w - lr * slope_w, b - lr * slope_b"""),
    # What comes from outside keeps its name, and all is as it was written where no gradient is asked for.
    (lambda x: np.linalg.norm(x @ WEIGHT + BIAS), (MAT,), "return np.linalg.norm(x @ WEIGHT + BIAS)"),
    (grad(loss_of_outside), (ROW[0],), """\
t = np.tanh(FEATURES @ w)
error = t - TARGET
g = 0.1 * np.maximum(error, TARGET)
derror = np.where(error < TARGET, 0, np.where(error == TARGET, g / 2, g))
dw = FEATURES.T @ (derror * (1 - t * t))
return dw"""),
    # No needless calls.
    (lambda x: x.sum(axis=1) * 2, (COLUMN,), "return x.reshape(3) * 2"),
    (lambda x: np.sum(x, axis=(0, 2), keepdims=True) + 1, (ROW[..., None],), "return x + 1"),
    (lambda x: np.max(x) * np.mean(x), (np.float64(2),), "return x * x"),
    (lambda x, y: x.T.T.reshape(3, 1).astype(float) - y.swapaxes(0, 1).copy(), (COLUMN, ROW), "return x - y.T"),
    (lambda x: np.broadcast_to(x.sum(), (3, 1)) * +(x**1) * 1 / 1 - 0, (COLUMN,), "return x.sum() * x"),
    (lambda x: x[[0, 2]] * 2, (COLUMN,), "return x[[0, 2]] * 2"),  # a new array, where x[0:2] would be one of x
    (lambda x: [x @ x.T, x.T @ x], (COLUMN,), "t = x.T\nreturn x @ t, t @ x"),
    (grad(lambda x, y: np.sum(x * y)), (ROW, ROW + 1), "return np.copy(y)"),
    # Large numbers are written as floats.
    (lambda x: x * np.float64(2.0**150), (ROW,), "return x * 1.42724769270596e+45"),
    # A way back begins with a 1 that nobody sees.
    (lambda x, v: jvp(grad(lambda x: np.mean(x**2)), (x,), (v,))[1], (ROW[0], ROW[0]), "return v * 0.6666666666666666"),
    # Arrays that are made say their dtype, as other libraries have other defaults.
    (grad(lambda x, y: (x + y).sum()), (COLUMN, ROW),
     "dx = np.full((3, 3), 1.0, dtype=np.float64).sum(axis=1, keepdims=True)\nreturn dx"),
    (grad(lambda x: x.mean() / 4), (COLUMN,), "dx = np.full((3, 1), 0.08333333333333333, dtype=np.float64)\nreturn dx"),
    *[(grad(lambda x: x[1] ** 2), (x,), f"dx = np.zeros((3,), dtype=np.{x.dtype})\ndx[1] = 2 * x[1]\nreturn dx")
      for x in (F32, ROW[0])],
    # Whatever the text, it needs the arguments alone, and holds for all values of theirs.
    *[(grad(lambda x, a: np.where(x > a, x * x, a * x)), args, "")
      for args in ((1.5, 1.0), (np.float64(1.5), np.float64(1)), (np.float32(1.5), np.float32(1)))],
    *[(grad(lambda x, v: np.sum(grad(lambda x: np.mean(np.tanh(x) ** 2))(x) * v)), args, "")
      for args in ((F32, F32 + 1), (ROW, ROW + 1))],
]  # fmt: skip


@pytest.mark.parametrize(("f", "args", "text"), TEXTS)
def test_source_is_what_one_would_write_and_runs_alone(f, args, text):
    source = jit(f).source(*args)
    assert body(source) == (text or body(source))
    check_text(source)
    for values in args, [-x for x in args]:
        found, expected = tree_leaves(executed(source, *values)), tree_leaves(tree_map(data_of, f(*values)))
        for x, y in zip(found, expected, strict=True):
            assert_alike(x, y, rtol=1e-5 if y.dtype == np.float32 else 1e-10)


def chain(layers: Any, x: Any) -> Any:
    for W, b in layers:
        x = np.tanh(x @ W + b)
    (W, b), _ = layers
    return x.sum() + (W * b).sum()


PAIRS, WITHIN = [(np.ones((n, 3)), np.ones(3)) for n in (2, 3)], types.SimpleNamespace(W=WEIGHT, layers=[np.ones(1)])
CUBE = defvjp(lambda x: x * x * x, lambda g, out, x: g * 3 * x**2)
ERF = defvjp(scipy.special.erf, lambda g, out, x: g * (2 / math.sqrt(math.pi)) * np.exp(-x * x))
SAYINGS: list[tuple[Any, Any, dict[str, int]]] = [
    # Products with a Hessian multiply twice, by w and v, by what the gradient multiplies by once.
    (lambda w, v: grad(lambda w: grad(loss_of_outside)(w) @ v)(w), (ROW[0], F32), {"FEATURES @ ": 2, "** 0": 0}),
    # What is within structures has their name, and what is within things from outside, and what NumPy makes, has none.
    (lambda x: np.tanh(x @ WITHIN.W) * WITHIN.layers[0] + np.random.default_rng(0).normal(size=1), (MAT,),
     {"def function(x, c, c_2, c_3):": 1}),
    (grad(chain), (PAIRS, MAT[:, :2]),
     {"def chain(layers, layers_2, layers_3, layers_4, x):": 1, "dlayers_4 = ": 1, "d chain / d layers_2": 1}),
    # Comments name gradients and no shares of them.
    (grad(lambda x: np.sum(np.sin(np.exp(x)) + np.log(np.exp(x) + 1) * np.sqrt(np.exp(x) + 1) + np.exp(x) ** 3)),
     (MAT,), {"d f / d x,": 1, "/ d t,": 0}),
    (grad(lambda x: [v := np.exp(x), v := (v * v).sum() + 0.5, v * 2][2]), (MAT,), {"d f / d x,": 1, "/ d t,": 0}),
    # A rule of one's own stands for its function.
    (CUBE, (MAT,), {"def <lambda>": 0}),
    (lambda x: scipy.special.erf(x), (MAT,), {"def function(x, c):": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("f", "args", "counts"), SAYINGS)
def test_source_says_what_its_reader_needs_and_not_what_he_does_not(f, args, counts):
    compiled = jit(f)
    source = compiled.source(*args)
    assert {text: source.count(text) for text in counts} == counts
    check_text(source)
    assert_alike(compiled(*args), tree_map(data_of, f(*args)))


def test_captured_tensors_are_read_at_the_time_of_the_call():
    x, w, b, frozen = np.array([1.0, 2.0]), leaf([3.0, 4.0]), leaf(1.0), Tensor([1.0, 1.0])
    loss = lambda x: (w * x * frozen).sum() + b.detach() * b  # noqa: E731
    slopes = jit(lambda x: grad(lambda w, b: loss(x) * (w * b).sum(), (0, 1))(w, b))  # with respect to what is captured
    compiled, lowered, optimizer = jit(loss), jit(loss).lower(x), SGD([w, b], lr=0.1)
    for _ in range(3):
        assert_alike(compiled(x), loss(x).data)
        assert_alike(slopes(x), (loss(x).data * b.data + 0 * x, loss(x).data * w.data.sum()))
        assert lowered(x) == loss(x).data
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()
        b.data -= 0.5  # a number becomes a 0-d array
        frozen.data = frozen.data * 2
    assert compiled.cache_info()[:2] == (2, 1)
    fixed = jit(lambda x: x + RNG.normal(size=1))  # what NumPy makes of plain arrays alone, random numbers too
    assert_alike(fixed(x), fixed(x))


def waves(x: Any) -> Any:
    return np.sum(np.sin(x) * x**2)


WAYS = calls("""
    grad(jit(waves)); jit(grad(jit(waves))); jit(jit(grad(waves))); grad(jit(jit(waves))); hessian(jit(waves))
    jit(np.sin); jit({grad/hessian}(waves)); jit(lambda x: grad(lambda z: grad(waves)(z) @ (x + 1))(x))
    jit(grad(lambda x: grad(lambda x: grad(waves)(x)[0])(x)[0])); jit(lambda x: jvp(np.tanh, (x,), (x + 1,)))
    (lambda scaled: jit(lambda x: scaled(x) + scaled(np.ones(3))))(jit(lambda x: x * WEIGHT * 3))
    jit(jacobian(lambda x: np.outer(x, np.sin(x)))); jit(functools.partial(np.sum, axis=0))
    jit(hessian(lambda x: np.sum(x[np.array([0, -1, -1])] ** 3)))
    jit(value_and_grad(lambda x: {CUBE(x)/ERF(x)/relu(sigmoid(x) - 0.5)}.sum()))
    jit(grad(lambda x: grad(lambda x: {CUBE(x)/ERF(x)/relu(sigmoid(x) - 0.5)}.sum())(x).sum()))
    """)


@pytest.mark.parametrize("text", WAYS)
def test_jit_nests_with_gradients_rules_of_ones_own_and_itself(text):
    compiled, plain = eval(text, globals()), eval(text, globals() | {"jit": lambda f: f})
    for x in MAT:
        assert_alike(compiled(x), tree_map(data_of, plain(x)))


def test_structures_go_in_and_come_out_as_with_the_function_itself():
    Point = collections.namedtuple("Point", "x y")
    rng = np.random.default_rng(0)
    tree = {"a": [rng.normal(size=3), (rng.normal(size=(2, 3)), 2.0)], ("k", 1): Point(np.float32(1), None), 3: "text"}

    def f(tree: Any, *rest: Any, scale: Any = 2, **more: Any) -> Any:
        a, (m, s) = tree["a"]
        point = Point(tree[("k", 1)].x * scale, [rest[0].sum(), more])
        return collections.OrderedDict(b=(a @ m.T * s, point), a={3: [m], "n": (rest[1], True, None, tree[3])})

    compiled = jit(f)
    for scale in (2, 3.0, np.float64(4)):
        found = compiled(tree, np.ones(2), 7, scale=scale, extra=np.ones(1))
        assert_alike(arrays_of(found), f(tree, np.ones(2), 7, scale=scale, extra=np.ones(1)))
    for result in ((), [], {}, None, 3, "a", ((),), (np.ones(2),), 3.0, np.float32(3), np.array(3), [range(3), np.tanh],
                   (np.dtype(float), slice(1, 2)), collections.defaultdict(list, a=np.ones(2))):  # fmt: skip
        assert_alike(jit(lambda x, result=result: (x, result))(1.0), (1.0, result))
        assert_alike(jit(lambda result=result: result)(), result)
    swapped = jit(lambda x, y: x[0] - x[1] if isinstance(x, tuple) else x + y)
    a, b = np.ones(2), np.full(2, 3.0)
    for _ in range(2):  # what is alike but for its structure is of another kind
        assert_alike(swapped((a, b), ()), a - b)
        assert_alike(swapped(a, b), a + b)


def test_cache_has_a_key_for_each_kind_is_bounded_and_tells_about_itself():
    f, x = jit(lambda x, n=0, *, flag=None: x * n), np.ones(2, int)
    for n, dtype in ((1, int), (True, int), (1.0, float), (2.5, float), (np.float32(2), float), (np.int8(3), int)):
        assert f(x, n).dtype == dtype
    f(leaf(np.ones(2)), 1)  # runs as it was written
    assert f.cache_info() == (1, 5, 128, 5)  # 1.0 and 2.5 are of one kind
    for same in np.array(5, np.int8), np.int8(7):
        assert f(x, same).tolist() == [same, same]
    assert f.cache_info()[:2] == (3, 5)
    flags = ("a", None, "b", 1, True, (1, "a"), (True, "a"), slice(1), slice(2), ..., np.tanh, abs)
    others: list[Any] = [(other, 1, {}) for other in (np.ones(3, int), np.ones(2), x.reshape(2, 1), x.astype(">i8"))]
    others += [(np.ones(2), 2, {"flag": flag}) for flag in flags]
    for misses, (other, n, options) in enumerate(others, 6):
        assert f(other, n, **options).tolist() == f(other + 0, n, **options).tolist() == (other * n).tolist()
        assert f.cache_info().misses == misses
    for n in [*range(200), 199]:
        assert f(np.ones(1), n) == n
    assert f.cache_info()[2:] == (128, 128)


W_OUTSIDE, B_OUTSIDE, BUFFER = leaf([1.0, 2.0, 3.0]), leaf(2.0), np.zeros(3)
UNIQUE = defvjp(lambda x: x * np.unique(x).size, lambda g, out, x: g)
WRITER = defvjp(lambda x: np.copyto(BUFFER, x) or x, lambda g, out, x: g)


def leaked() -> Any:
    kept: list[Any] = []
    jit(lambda x: kept.append(x * 2))(1.0)
    return kept[0]


def goes_on_after_an_error(x: Any) -> Any:
    with contextlib.suppress(TypeError):
        return x * float(x.sum())
    return x


POINT, MATRIX, OF_DASK = np.array([1.0, -2.0, 3.0]), np.ones((2, 2)).view(np.matrix), Tensor(da.ones(3), True)
SQUARE, SERIES = np.ones((2, 2)), pd.Series([1.0, 2.0, 4.0], index=list("abc"))
UNTRACEABLE = {  # by what jit says, programs of x
    r"if, while or bool\(\).*np\.where": "x if x[0] > 0 else -x; x if B_OUTSIDE > 0 else -x; max(x[0], x[1])"
    "; [None for _ in iter(lambda: bool(x.sum()), False)]; bool(np.allclose(x, 1))",
    r"Python number.*np\. functions": "float(x.sum()); int(x.sum()); math.exp(x.sum()); format(x.sum(), '.3f')"
    "; x * x.sum().item(); x * float(B_OUTSIDE); x * B_OUTSIDE.item(); goes_on_after_an_error(x)",
    r"reading \.data.*outside": "x.data * 2; x * W_OUTSIDE.data", r"reading \.grad.*outside": "x * W_OUTSIDE.grad",
    r"setting \.data.*outside": "setattr(W_OUTSIDE, 'data', POINT)",
    r"setting \.grad.*outside": "setattr(W_OUTSIDE, 'grad', None)",
    r"NumPy array": "np.asarray(x); np.array(x) * 2; operator.setitem(np.zeros(3), ..., x)",
    r"np\.stack": "np.array([x, x])", r"np\.where\(mask, x, 0\)": "np.sum(x, where=x > 0)",
    r"shape depends on values np\.sum\(np\.where\(mask, x, 0\)\) for np\.sum\(x\[mask\]":
    "x[x > 0]; W_OUTSIDE[x > 0]; np.nonzero(x); np.where(x > 0); np.repeat(x, x > 0)",
    r"an index: write an int": "np.repeat(x, np.argmax(x)); x[: np.argmax(x)]; range(np.argmax(x))"
    "; np.sum(np.ones((3, 3)) * x, axis=np.argmax(x)); np.roll(x, np.argmax(x))",
    r"writes into an array": "np.sum(x * np.ones((2, 1)), axis=0, out=BUFFER); np.concatenate([x], out=BUFFER)",
    r"written to.*np\.where": "operator.setitem(x, 0, 1)", r"np\.copyto has no derivative rule": "WRITER(x)",
    r"np\.unique has no derivative rule": "UNIQUE(x)", r"step\(\).*outside": "SGD([W_OUTSIDE], lr=0.1).step()",
    r"backward\(\).*grad\(\)": "(x * W_OUTSIDE).sum().backward()",
    r"cannot follow what detect_anomaly": "detect_anomaly().__enter__() or x",
}  # fmt: skip
NO_ARRAYS = {
    r"no DataFrame: give \.to_numpy\(\)": "SERIES.to_frame()",
    r"\.to_numpy\(\)": "SERIES; pd.Index([1.0, 2.0]); pd.array([1.0, 2.0])",
    r"np\.asarray\(\)": "SQUARE.view(type('Mine', (np.ndarray,), dict(unit='m')))",
    r"np\.asarray\(matrix\)": "MATRIX", r"data\.filled": "np.ma.array([1.0, 2.0])",
}  # fmt: skip
JIT_ERRORS = {
    r"TypeError.*used outside: return it":
    "leaked() + 1; (lambda t: jit(lambda x: x + t)(1.0))(leaked()); (lambda t: jit(lambda: t)())(leaked())",
    r"TypeError.*unhashable type: 'set'": "jit(lambda x, s: x)(1.0, set([1]))",
    r"ValueError.*np\.multiply of shapes \(2,\) and \(3,\)": "jit(np.multiply)(np.ones(2), np.ones(3))",
    r"TypeError.*missing 1 required positional argument": "(lambda f: [f(1.0, 2.0), f(1.0)])(jit(lambda x, y: x * y))",
    r"KeyError.*mine": "jit(lambda x: dict()['mine'])(1.0)",
    r"TypeError.*computed Tensor from outside would lose its gradient.*as an argument":
    "grad(lambda v: jit(lambda x: (x * v).sum())(np.ones(2)))(np.ones(2))",
    r"TypeError.*generates code for NumPy's arrays": "jit(lambda x: x * OF_DASK)(np.ones(3))",
    r"TypeError.*multiplies elementwise: give .*np\.asarray": "Tensor(SQUARE) * MATRIX; MATRIX * Tensor(SQUARE)"
    "; Tensor(SQUARE) @ MATRIX; np.concatenate([Tensor(SQUARE), MATRIX]); grad(lambda m: np.sum(m * m))(MATRIX)"
    "; jit(lambda x: x * MATRIX)(SQUARE)",
    **{f"TypeError.*{why}": "; ".join(f"jit(lambda x: {of_x})(POINT)" for of_x in calls(UNTRACEABLE[why]))
       for why in UNTRACEABLE},
    **{f"TypeError.*{way}": "; ".join(f"jit(lambda x: x)({x}); jit(len)([dict(a=({x},))])" for x in calls(things))
       for way, things in NO_ARRAYS.items()},
}  # fmt: skip


def test_arrays_of_other_libraries_and_pandas_under_jit(tmp_path):
    f, x, column = jit(lambda x, y: (x * y).sum(axis=0)), Tensor(pd.DataFrame({"a": [1.0, 2.0]})), Tensor(SERIES)
    assert_alike(f(x, x + 1), np.array([8.0]))
    assert f.cache_info()[:2] == (0, 1)
    assert_alike(jit(lambda x: x * 2)(column), SERIES.to_numpy() * 2)
    assert_alike(jit(lambda x: x * SERIES)(np.ones(3)), SERIES.to_numpy())  # as beside any Tensor
    mapped = np.memmap(tmp_path / "file", dtype=float, mode="w+", shape=(2, 2))
    assert_alike(jit(lambda x: x + 2)(mapped), SQUARE * 2)
    lazy = f(da.ones((4, 2), chunks=2), 2.0)
    assert (type(lazy), lazy.compute().tolist()) == (da.Array, [8, 8])


def test_errors_of_generated_code_are_those_of_numpy_and_name_the_function():
    compiled = jit(lambda x: np.linalg.inv(x + 1))
    compiled(np.eye(2))
    with pytest.raises(np.linalg.LinAlgError, match="Singular") as caught:
        compiled(-np.ones((2, 2)))
    assert "<jit function>" in [entry.path for entry in caught.traceback]


# Equal to others, but not the same within.
Frozen: Any = type("Frozen", (types.SimpleNamespace,), {
    "__hash__": lambda self: hash(self.value), "__call__": lambda self, x: x * self.value})  # fmt: skip
Counted = type("Counted", (), {"n": itertools.count(), "__repr__": lambda self: f"Counted{next(self.n)}"})
f4, DOUBLE = np.float32, jit(lambda x: x * 2)
TWO_CALLS = {  # arguments of the first call, and of the second, and functions of x and c
    "MAT | MAT + 1": """np.mean(x, where=[True, False, True]); np.sum(a=x, axis=0) + np.max(a=x)
    np.reshape(np.reshape(x, (3, 2), order="F"), 6); np.reshape(np.reshape(x, (3, 2), "F"), 6)
    x[range(2)] * x[(0, 1), range(2)][0]; x[Pair(0, slice(1, None))] + x[Pair(1, 0)]
    x * 1.0 + grad(lambda x: x[[0, 0]].sum())(x); x * np.longdouble(2)""",
    "MAT[:1] | MAT[:1] + 1": "np.sum(x, axis=0, initial=5.0)", "MAT[0, 1] | MAT[0, :1]": "np.max(x, initial=0.0)",
    "MAT[:1, :1] | MAT[:1, :1] + 1": "np.sum(x, where=False)", "MAT[:0] | MAT[:0]": "np.sum(np.ones_like(x) * np.inf)",
    "MAT[:, :0] | MAT[:, :0]": "x.sum(axis=0), x.mean(axis=1), x.T @ x",
    "MAT[:1, :1] | MAT[1:, 1:2]": "x.sum(axis=1).max(axis=0) + x.mean(keepdims=True)",
    "np.ones((1, 1)) | np.zeros((1, 1))": "np.broadcast_to(np.reshape(x, ()), (3,))",
    "MAT | MAT.T": 'np.ravel(x, "F")[::-1] * np.ravel(x)', "MAT | MAT * 0": "np.array_equal(x, x[::-1]) + 1",
    # Rounding, overflow and the signs of zeros.
    "f4([1, -3]) | f4([2, 3])": """np.sum(np.ones_like(x), initial=5.0) + x
    x * ((np.ones_like(x) * 16777216 + 1) - 16777216); x + np.ones_like(x) * 1e30 * 1e30 / 1e30; x / -np.zeros_like(x)
    """,
    "f4([0]) | f4([1])": "np.arctan2(x, -np.zeros_like(x))", "f4([1, -0.0]) | f4([-0.0, 1])": "1 / (x + 0); x - -0.0",
    "f4([1, 2, 4]) | f4([2, 3, 5])": "np.mean(x) * 3 + np.ones_like(x) / 3 * x",
    "f4([1, 0]) | f4([1, 2])": "x / np.count_nonzero(x)", "f4([1]), 1 + 0j | f4([1]), complex(1, -0.0)": "x / c.imag",
    # Python's numbers beside float32, and alone; NumPy's integers; booleans.
    "f4([1, 2]), 0.5 | f4([2, 3]), 0.25": "x * c**0 * (c * -1) * (0.5 - (-c)) + x**0",
    "f4([1, 2]), 2.5 | f4([3, 4]), 0.5": """x * np.reshape(c, (1,)), x * np.reshape(np.reshape(c, (1,)), ())
    x * np.broadcast_to(c, (2,)), x * np.copy(c), np.concatenate([np.reshape(c, (1,)), x])
    np.add(c, 1.0) * x + np.floor_divide(3.0, c), np.subtract(c, x) * np.multiply(x, c)""",
    **dict.fromkeys(["2.0 | -0.5", "0.5 | 2.0"], """value_and_grad(lambda x: (F32 * x).sum())(x)
    F32 * -x, F32 * abs(x), F32 * +x, -x, np.exp(x), F32 * ((x < 1) & (x >= 0)), F32 * (x * x - x)"""),
    "2.0, 3.0 | 3.0, 4.0": "np.transpose(x), np.sum(x) + np.mean(x, keepdims=True), np.inner(x, c) + np.dot(x, c)",
    "np.int64(3) | np.longlong(4)": "x * 2",
    "MAT, np.int64(2) | MAT, np.int64(3)": "np.dot(x, c) + np.clip(x, 0, c) * c",
    **dict.fromkeys(["np.array([True, False]) | np.array([False, True])", "np.True_ | np.False_"],
                    "np.power(x, 2), x**2, np.power(x, x), np.power(x, True)"),
    # Things that are fixed, and keys: equal ones may differ within.
    **dict.fromkeys(["MAT, np.float32 | MAT, np.int64", 'MAT, np.dtype("f4") | MAT, np.dtype(int)'],
                    "x.astype(c), (x * 2).astype(c)"),
    "INTS, frozenset({1}) | INTS, frozenset({1.0})": "x * max(c)",
    "INTS, Frozen(value=1) | INTS, Frozen(value=1.0)": "x * c.value; c(x)",
    "MAT, Counted() | MAT + 1, Counted()": "x * 2",
    "MAT, Frozen(value=2) | MAT + 1, Frozen(value=2)": '[setattr(c, "seen", True), c(x)][1]',
    "{(1,): INTS} | {(1.0,): INTS}": "[v * k[0] for k, v in x.items()]",
    **dict.fromkeys([f"{{1.5: MAT, 2.5: MAT * 3}} | {x}" for x in ("{2.5: MAT * 3, 1.5: MAT}", "{3.5: MAT}")],
                    "[v * k for k, v in x.items()]"),
    **dict.fromkeys([f"{{{key}: MAT}} | {{{key}: MAT + 1}}" for key in ('np.dtype("f4")', "range(3)", '"w"')],
                    "next(iter(x.values())) * 2"),
    '{"\u00b5": MAT, "\u03bc": MAT + 1} | {"\u00b5": MAT * 2, "\u03bc": MAT}':
    'np.exp(x["\u00b5"]) * 2 - np.exp(x["\u03bc"])',
    # Other functions within, gradients, and many operations.
    "ROW | COLUMN": "DOUBLE(x) + DOUBLE.lower(ROW)(ROW) * len(DOUBLE.source(ROW)); sum([x] * 3000)",
    "ROW[0, ::-1] | ROW[0, [2, 0, 1]]": "hessian(lambda x: (np.sort(x) ** 3 * [1.0, 2.0, 3.0]).sum())(x)",
    "1.0 | 2.0": "grad(lambda x: functools.reduce(lambda x, i: x * 1.0001 + 0.5 / i, range(1, 3001), x))(x)",
    "0.5 | 1.5": "np.sin(x); grad(grad(grad(np.sin)))(x)",
}  # fmt: skip


@pytest.mark.parametrize(("both", "text"), [(both, text) for both in TWO_CALLS for text in calls(TWO_CALLS[both])])
def test_second_call_with_other_values_gives_what_numpy_gives_too(both, text):
    first, second = eval(f"({both.replace(' |', ',), (')},)")
    f = eval(f"lambda {', '.join('xc'[: len(first)])}: ({text})", globals())
    compiled = jit(f)
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        for args in (first, second, first):
            for found, expected in zip(tree_leaves(compiled(*args)), tree_leaves(f(*args)), strict=True):
                assert type(found) is np.ndarray
                np.testing.assert_array_equal(found, expected, strict=True)
                np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))
    check_text(compiled.source(*first))


@pytest.mark.parametrize("i", [int, np.int64, np.intp, np.int8, np.longlong])
@pytest.mark.parametrize("text", calls("""
    np.max(x, axis=i(0)); x.mean(i(1)); np.sum(x, axis=(i(0), i(1))); np.reshape(x, (i(3), i(2))); x.reshape(i(3), -1)
    x[i(0) : i(1), i(1)]; np.broadcast_to(x, (i(2), 2, 3)); np.concatenate([x, x], i(1)); x[range(2)]; x + range(3)
    np.dot(x, range(3)); np.roll(x, i(1), i(1)); np.linalg.norm(x, i(1)); np.linalg.norm(x, -i(1), (i(0), i(1)))
    np.linalg.norm(x, np.float64(np.inf) if i is not int else np.inf); x ** i(2); np.multiply(range(3), x); x @ range(3)
    np.full_like(x, i(3), shape=(i(2),)) * x[:, 0]; np.full_like(x, [1.0, 2.0, 3.0]) * x
    np.full_like(x, i(3)) * np.full_like(x, 1.5); x[:, tuple(range(2))]
    """))  # fmt: skip
def test_numpys_integers_and_ranges_do_under_jit_and_with_gradients_what_pythons_do(text, i):
    f = eval(f"lambda x, i: {text}", {"np": np})
    x = np.arange(1.0, 7).reshape(2, 3)
    assert_alike(jit(lambda x: f(x, i))(x), f(x, int))
    [slope] = central_differences(lambda x: np.sum(f(x, int) ** 2), [x], 1.0)
    of_squares = grad(lambda x: np.sum(f(x, i) ** 2))
    for found in of_squares(x), jit(of_squares)(x):
        np.testing.assert_allclose(found, slope, rtol=1e-6, atol=1e-6)


def test_nothing_that_a_caller_passes_becomes_code():
    Text, Number, Whole = (type("Bad", (t,), {"__repr__": lambda _: "exit('code')"}) for t in (str, float, int))
    bad = "a\n    exit('code')\n#"
    key, x = Text(bad), np.array([1.0, 2.0])

    def f(tree: Any, text: Any, number: Any, whole: Any, **more: Any) -> Any:
        picked = tree[bad] * number + tree[key] * Number(3) + tree[(1, bad)] - Whole(2) + more[bad]
        picked = picked + tree[bad][: Whole(2)] * picked[slice(Whole(0), None, Whole(1))]
        return {bad: picked, key: (text, whole, number)}, np.where(picked > math.inf, -math.inf, math.nan)

    f.__name__ = f.__qualname__ = bad
    arguments, options = [{bad: x, key: x, (1, bad): x + 1}, key, Number(2), Whole(5)], {bad: x}
    compiled = jit(f)
    assert_alike(compiled(*arguments, **options), f(*arguments, **options))
    source = compiled.source(*arguments, **options)
    check_text(source)
    assert "exit('code')" not in re.sub(r"'[^'\n]*'|\"[^\"\n]*\"", "", source)


def test_names_of_functions_and_arguments_do_not_get_into_the_way():
    as_code = dict.fromkeys(["__repr__", "__str__", "__format__"], lambda *_: "exit('code')")
    Name = type("Name", (str,), as_code | {"isidentifier": lambda _: True, "startswith": lambda *_: False})

    def shadows(np: Any, len: Any, float: Any, args: Any, NotImplemented: Any, _array: Any, lambda_: Any) -> Any:  # noqa: A002, N803
        return np * len + float / args - NotImplemented * _array + lambda_

    numbers = [np.arange(1.0, 4) + i for i in range(7)]
    assert_alike(jit(shadows)(*numbers), shadows(*numbers))
    check_text(jit(shadows).source(*numbers))
    twice = jit(lambda **options: sum(options.values()) * 2)
    for name, x in itertools.product((Name("a"), Name("b=exit('code')"), "\uff4e\uff50", "\uff49f", "\ufb01"), numbers):
        assert_alike(twice(**{name: x}), x * 2)
    for name in ("_array", "_map", "_signature", "_as_scalar", "_3", "_args", "len", "np", "float", "function"):
        f = lambda x: (x * 2, [x.sum()])  # noqa: E731
        f.__name__ = name
        for x in (np.ones(2), np.arange(2.0), np.float64(3)):
            assert_alike(jit(f)(x), f(x))


def test_jit_works_without_arguments_and_on_methods():
    class Model:
        def __init__(self, *w: float) -> None:
            self.w = leaf(w)

        @jit
        def loss(self, x: Any, power: int = 2) -> Any:
            return (self.w * x**power).sum()

    model, other, x = Model(1.0, 2.0), Model(3.0, 4.0), np.array([1.0, 3.0])
    assert [m.loss(x) for m in (model, other, model)] == [19, 39, 19]
    model.w.data = [0.0, 1.0]
    assert [model.loss(x), model.loss(x, power=1), model.loss(x, 1)] == [9, 3, 3]
    assert (model.loss.cache_info().misses, model.loss.__name__) == (4, "loss")
    assert_alike(jit(lambda: model.w.detach() * 2)(), model.w.data * 2)


OUTSIDE, NUMBER = np.ones((4, 4)), Tensor(np.float64(3))
ORDERS_IN_MEMORY = calls("""
    np.ravel(x, "{A/K}"); x.ravel(order="{A/K}"); np.reshape(x, (8, 2), order="A"); np.reshape(np.copy(x.T), -1, "A")
    (lambda y: (y, np.ravel(y, "K")))(x + 1)
    """)  # whose results depend on the layout of what jit saw first
VIEWS = calls("""
    np.ravel(x, "{C/F}"); x.ravel(order="{C/F}"); np.reshape(x, (8, 2), order="{C/F}")
    np.reshape(np.copy(x.T), -1, "{C/F}"); np.{atleast_1d/atleast_2d/atleast_3d}(x[0], x)
    np.{transpose/flip/fliplr/flipud/diagonal/diag/squeeze/imag/atleast_3d/copy}(x); np.transpose(a=x); np.rot90(x, 0)
    np.{split/array_split/hsplit/vsplit}(x, 2); np.swapaxes(x, 0, 1); np.diff(x, 0); np.moveaxis(x, 0, 1)
    np.expand_dims(x, 0); np.einsum("ij->ji", x); np.broadcast_to(x, (2, 4, 4)), np.broadcast_to(x.sum(), (3,))
    x[0], x[..., 1:], x[:, None]; [*x]; x, dict(a=x); x.astype(float); x * 1, +x, x - 0, x**1; [x.sum()] * 2
    OUTSIDE, OUTSIDE[0], x.sum(); np.atleast_1d(NUMBER, 1.0)[0][0, ...]
    NUMBER, NUMBER[...], NUMBER.reshape(()), +NUMBER, NUMBER.T
    (lambda y: (y, y.T, y, y.reshape(2, 8), np.diagonal(y[:0])))(x + 1)
    [f(y[:1], axis=0) for f in (np.sum, np.mean, np.max) for y in (x, np.exp(x))]
    [f(x[:1, :1])[..., None] for f in (np.sum, np.mean, np.max)]
    x[0, 0], x.max()[()], np.diagonal(x[:1, :1]) - 0, np.split(x[:1, :1].T, 1)[0] / 1
    grad(lambda x: np.sum(np.ravel(x)))(x); grad(lambda x: x.sum() ** 2)(x)
    value_and_grad(lambda x: (x * OUTSIDE).sum())(x)
    grad(lambda x: (np.ravel(x)[2:8] * x.T.reshape(-1)[:6]).sum() + (x.T[0] ** 3).sum())(x)
    """)


@pytest.mark.parametrize("text", [*ORDERS_IN_MEMORY, *VIEWS])
def test_results_of_jit_are_right_and_share_no_memory_with_arguments_of_any_layout_or_tensors_from_outside(text):
    f = eval(f"lambda x: ({text})", globals())
    x = np.arange(16.0).reshape(4, 4)
    fixed = x.copy()
    fixed.flags.writeable = False
    unaligned = np.frombuffer(b"1" + x.tobytes(), np.uint8)[1:].view(float).reshape(4, 4)
    layouts = [x, x.copy(order="F"), np.zeros((8, 8))[::2, 1::2], np.arange(64.0).reshape(8, 8)[::2, ::2], x[::-1]]
    layouts += [x[::-1, ::-1], fixed, np.broadcast_to(x[0], (4, 4)), unaligned, x.astype(">f8")]
    for first in layouts:
        compiled, outside = jit(f), Tensor(first)
        compiled(first)
        captured = jit(lambda z, outside=outside: f(outside))
        captured(0.0)
        for later in layouts:
            outside.data = later
            before, expected = later.copy(), tree_leaves(tree_map(data_of, copy.deepcopy(f(later))))
            for out in compiled(later), compiled.lower(first)(later), captured(0.0), captured.lower(0.0)(0.0):
                for i, array in enumerate(arrays := tree_leaves(out)):
                    assert not np.may_share_memory(array, later)
                    assert not any(np.shares_memory(array, other) for other in arrays[:i])
                    if text not in ORDERS_IN_MEMORY:
                        np.testing.assert_allclose(array, expected[i], rtol=1e-12)
                    array += 100
            np.testing.assert_array_equal(later, before)
        assert compiled.cache_info().misses == 2  # as one of them is big-endian
    assert (OUTSIDE == 1).all()
    assert NUMBER.data == 3


OWN_TYPES = [
    type("Itself", (dict,), {
        "__init__": lambda self, **items: self.update(items) or setattr(self, "__dict__", self)})(w=np.arange(2.0)),
    type("Sized", (dict,), {
        "__init__": lambda self, n: self.update(w=np.arange(n)), "__getattr__": dict.__getitem__})(2.0),
    type("Layers", (list,), {
        "__init__": lambda self, n, m: self.extend([np.arange(n)] * m), "w": property(lambda self: self[0])})(2.0, 1),
    type("Doubled", (collections.namedtuple("Doubled", "w b"),), {
        "__new__": lambda cls, w: tuple.__new__(cls, (w, w * 2))})(np.arange(2.0)),
]  # fmt: skip


@pytest.mark.parametrize("params", OWN_TYPES, ids=lambda params: type(params).__name__)
def test_structures_of_the_users_own_type_stay_of_that_type_in_the_function_and_in_gradients(params):
    def loss(p: Any) -> Any:
        assert type(p) is type(params)
        return np.sum(p.w**3)

    w, twice = np.arange(2.0), jit(lambda p: grad(lambda q: np.sum(loss(q) * 2))(p))
    for f, factor in (grad(loss), 3), (jit(grad(loss)), 3), (twice, 6):
        for found in f(params), f(params):
            assert type(found) is type(params)
            np.testing.assert_array_equal(found.w, factor * w**2)
    found = hessian(loss)(params)
    assert type(found) is type(params)
    np.testing.assert_array_equal(found.w.w, np.diag(6 * w))
    np.testing.assert_array_equal(params.w, w)


def test_threads_share_jitted_functions_while_others_trace_and_train():
    w = leaf(np.ones(3))
    f = jit(value_and_grad(lambda x, n: (np.tanh(w * x) ** n).sum()))
    calls = engine_calls(lambda: f(np.ones(3), 2))

    def work(k: int) -> None:  # where this fails, pytest does
        for i in range(60):
            x, n = np.full(3, 0.1 * k + i), 2 + (i + k) % 5
            value, [slope] = grads(lambda x, n=n: (np.tanh(x) ** n).sum(), x)
            assert_alike(f(x, n), (value, slope), rtol=1e-13, atol=1e-14)

    in_threads(work, 6)
    assert engine_calls(lambda: f(np.ones(3), 2)) == calls  # nobody traces or watches any more


def test_tracing_leaves_nothing_behind_for_the_garbage_collector(no_collector):
    f = jit(value_and_grad(lambda w, x: (np.tanh(w * x) ** 2).mean(), (0, 1)))
    gc.collect()
    f(0.5, np.ones(1000))
    assert gc.collect() == 0


def test_generated_code_needs_no_more_memory_than_code_by_hand():
    w, b, x = 0.5, 0.1, np.random.default_rng(0).normal(size=100_000)

    def by_hand(w: Any, b: Any, x: Any) -> Any:
        t = np.tanh(w * x + b)
        dz = 2 / x.size * t * (1 - t * t)
        return (t * t).sum() / x.size, ((dz * x).sum(), dz.sum(), dz * w)

    lowered = jit(value_and_grad(lambda w, b, x: np.mean(np.tanh(w * x + b) ** 2), (0, 1, 2))).lower(w, b, x)
    peaks = []
    for function in (lowered, by_hand, lowered, by_hand):
        with traced_memory():
            function(w, b, x)
            peaks.append(tracemalloc.get_traced_memory()[1])
    assert peaks[2] <= 1.05 * peaks[3]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("constant", [np.array([0.1, 0.3]).sum(), np.float64(0.1), np.array([0.1, 0.3])], ids=repr)
@pytest.mark.parametrize("reduce", [np.sum, np.mean, np.max, np.var, np.prod, lambda a: a[0, 1], lambda a: a.sum(0)[1]])
def test_gradients_keep_the_dtype_of_the_argument_under_jit_where_the_loss_has_a_wider_one(reduce, constant, dtype):
    f = lambda a: reduce(np.sin(a)) * 3 + np.sum(constant)  # noqa: E731
    x = np.array([[1.0, 2.0], [3.0, 0.5]], dtype)
    for g in f, lambda a: np.sum(grad(f)(a) ** 2) + np.float64(0.1), lambda a: np.sum(reduce(np.sin(a)) * constant):
        eager, compiled = grad(g)(x), jit(grad(g))(x)
        assert eager.dtype == compiled.dtype == dtype
        np.testing.assert_allclose(compiled, eager, rtol=20 * np.finfo(dtype).eps)


# --- Models on arrays of other libraries ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", [as_dask, as_box])
def test_derivatives_of_every_kind_stay_lazy(kind, dtype):
    rng = np.random.default_rng(1)
    parameters = [rng.normal(size=shape).astype(dtype) for shape in ((4, 6), (6,), (6, 1), ())]
    W, N = PLAIN["W"].astype(dtype), PLAIN["N"].astype(dtype)

    def derivatives(kind: Any) -> list[Any]:
        x, y, col, row, z = [kind(name).astype(dtype) for name in ("x", "y", "col", "row", "z")]
        t, *leaves = [Tensor(a, requires_grad=True) for a in (x, *parameters)]
        (t * t).backward(kind(N))
        (t * t).backward(N)  # which adds to what the first left
        for _ in range(2):
            two_layers(*leaves, x, col).backward()
        return tree_leaves([
            value_and_grad(two_layers, (4, 5))(*parameters, x, col),
            value_and_grad(two_layers, (0, 1, 2, 3))(*parameters, x, col),
            [leaf.grad for leaf in (t, *leaves)],
            grad(lambda x: grad(lambda x: (np.tanh(x @ W) ** 3).sum())(x).sum())(x),
            jacobian(lambda row: x @ row)(row),
            jacobian(lambda x: x.sum(0) * row)(x),
            jacobian(lambda v: x @ v)(LEAVES["row"]),
            hessian(lambda row: (row**3).sum() * row[0])(row),
            jvp(lambda x, w: np.tanh(x @ w), (x, W), (y, W * 2)),
            value_and_grad(lambda z: (x * z).sum())(z),
            grad(lambda z: (x * z).sum())(2.0),
            grad(lambda p: (p["x"] * p["z"]).sum())({"x": x, "z": z})["x"],
            grad(lambda x: (row * 2).sum())(x),
        ])  # fmt: skip

    with nothing_is_fetched():
        found = derivatives(kind)
    assert {type(g) for g in found} == {type(kind("x"))}
    check_close(found, derivatives(as_numpy), 1e-10 if dtype == np.float64 else 1e-4)


def test_data_without_gradients_stays_lazy_and_repr_says_what_it_is():
    with nothing_is_fetched():
        x = Tensor(as_dask("x"), dtype=np.float32)
        assert "dask.array" in repr(x)
        with no_grad():
            y = (x.T @ x + 1).detach()
        assert (type(y.data), y.dtype, y.shape, y.requires_grad) == (da.Array, np.float32, (4, 4), False)
        with pytest.raises(FetchedError):
            float(y.sum())
    assert y.sum().item() == pytest.approx(np.sum(LEAVES["x"].T @ LEAVES["x"] + 1), rel=1e-5)


# --- Bad input to the engine ------------------------------------------------------------------------------------------

FIRST = defvjp(lambda xs: next(iter(xs)), lambda g, out, xs: g)


def ruled(gradient):
    """A number whose rule gives something wrong for the gradient."""
    return defvjp(lambda x: x * 2, lambda g, out, x: gradient)(leaf([1.0, 2.0])).sum()


# What is wrong, and all that is refused with these words.
ERRORS: list[tuple[type[Exception], str, *tuple[str, ...]]] = [
    (ValueError, r"np\.multiply of shapes \(2,\) and \(3,", "leaf([1.0, 2.0]) * np.ones(3)"),
    (ValueError, r"np\.matmul of shapes \(\) and \(\)", "leaf(2.0) @ leaf(2.0)"),
    (np.exceptions.AxisError, r"np\.sum of shapes \(6,\).*axis 3", "leaf(np.ones(6)).sum(axis=3)"),
    (np.linalg.LinAlgError, r"Singular matrix", "np.linalg.inv(leaf(np.zeros((2, 2))))"),
    (ValueError, r"np\.stack of shapes \(2,\) and \(3,\)", "np.stack([leaf(np.ones(2)), np.ones(3)])"),
    (TypeError, r"np\.copy.* takes no order: say it", "np.copy(leaf(np.ones(6)), 'F')"),
    (TypeError, r"takes no out: ", "np.take(leaf(ROW), [0, 1], axis=0, out=np.ones(2))"),
    (TypeError, r"not None: is a value or a return missing", "Tensor(None)", "grad(lambda x: None)(1.0)",
     "grad(lambda p: p['a'])({'a': 1.0, 'b': None})"),
    (ValueError, r"return one number, not \(\(\), \(\)\)", "grad(lambda x: (x, x))(1.0)"),
    (TypeError, r"bool data cannot require gradients: .*3\.0", "grad(lambda x: x * 2)(True)"),
    (TypeError, r"bool data cannot require.*dtype=float", "Tensor(True, requires_grad=True)"),
    (TypeError, r"int64 data cannot require.*dtype=float", "Tensor(3, requires_grad=True)"),
    (ValueError, r"True or False, not .*write dtype=", "Tensor([1.0], np.float32)"),
    (ValueError, r"of 2 .*, not \(0, -2\)", "grad(lambda x, y: x * y, (0, -2))(1.0, 2.0)"),
    (ValueError, r"argnums .* 1 arguments, not 1", "grad(lambda x: x, 1)(1.0)"),
    (TypeError, r"write \(x,\) and \(v,\)", "jvp(abs, np.ones(1), np.ones(1))"),
    (ValueError, r"structure.*\{'a': \(\)\}", "jvp(lambda p: p['a'], ({'a': 1.0},), ({'b': 1.0},))"),
    (TypeError, r"gave a T", "defvjp(lambda x: x * leaf(2.0), lambda g, out, x: g)(leaf(1.0))"),
    (TypeError, r"gave a tuple", "defvjp(lambda x: (x, x), lambda g, out, x: g)(leaf(1.0))"),
    (TypeError, r"complex128: use \.real and \.imag", "Tensor(1j)", "np.array([1j]) * leaf(1.0)"),
    (TypeError, r"data of dtype object: convert it first", "Tensor([object()])", "np.where([True], leaf([1.0]), None)",
     "leaf([1.0, 2.0]) ** np.array([1, 2], object)", "leaf(1.0) * pd.DataFrame({'a': [1], 'b': ['x']})"),
    (TypeError, r"holds booleans, integers or floats, .*<U1", "leaf([1.0]) - np.array(['a'])"),
    (TypeError, r"dtype <U32: convert", "leaf([1.0]).astype(str)"),
    (TypeError, r"not data of dtype dat", "leaf([1.0]) == np.array(['2020'], 'M8[D]')"),
    (TypeError, r"\.filled", "Tensor(np.ma.array([1.0], mask=[True]))"),
    (ValueError, r"inhomogeneous", "Tensor([[1.0], [1.0, 2.0]])"),
    (TypeError, r"lose them as a NumPy array: .*np\.stack\(\[t, u\]\) for np\.array.*of rows np\.stack\(\[np\.stack\("
     r".*X @ t for X\.dot\(t\), Tensor\(df\) @ t for df @ t, or t\.item\(\) or t\.detach\(\)",
     "Tensor(leaf(1.0))", "Tensor([leaf(1.0)])", "np.asarray(leaf([1.0]))", "np.array([leaf(1.0), leaf(2.0)])",
     "np.array([[leaf(1.0)]])", "np.ones((2, 2)).dot(leaf([1.0, 2.0]))", "np.float64(leaf(1.0))",
     "operator.setitem(np.zeros(2), slice(None), leaf([1.0, 2]))", "np.gradient([1.0, 2.0, 4.0], leaf(2.0))",
     "pd.DataFrame([[1.0]]) @ leaf([[1.0]])"),
    (TypeError, r"Python number.*np\. functions.*\.item\(\)", "float(leaf(1.0))", "int(leaf(1.0))"),
    (TypeError, r"np\.add with out=.*a \+ t for .*np\.a", "operator.iadd(np.zeros(2), leaf(1.0))"),
    (TypeError, r"cannot be written to.*np\.where", "operator.setitem(leaf([1.0]), 0, 1)"),
    (ValueError, r"\(2,\) needs a gradient.*\.sum\(\)", "leaf([1.0, 2.0]).backward()"),
    (ValueError, r"shape \(2,\) .*not \(3,\)", "leaf([1.0, 2.0]).backward(np.ones(3))"),
    (ValueError, r"requires no gradient: .*requires_grad=True.*w -=", "Tensor(1.0).backward()",
     "no_grad()(operator.isub)(leaf(1.0), 0.1).backward()"),
    (TypeError, r"returned NoneType", "ruled(None).backward()"),
    (TypeError, r"returned ndarray complex128", "ruled(np.ones(2) * 1j).backward()"),
    (TypeError, r"returned ndarray object", "ruled(np.array([None, 2.0])).backward()"),
    (TypeError, r"takes a function and rules.*\(3\.0,\)", "defvjp(lambda x: x, 3.0)"),
    (TypeError, r"takes a function and rules, not.*\(\)", "defvjp(lambda x: x)"),
    (TypeError, r"takes a function.*not 3", "defvjp(3, lambda g: g)"),
    (TypeError, r"rules of g, the result and every", "defvjp(lambda x: x * x, lambda g, x: g)",
     "defvjp(np.add, None, lambda g, out, x: g)"),
    (TypeError, r"one by one, by position: no list, dict or key", "FIRST({'a': leaf(1.0)})", "FIRST([leaf(1.0)] * 2)",
     "np.sum(leaf([1.0]), axis=leaf(0.0))"),
    (TypeError, r"shape", "np.reshape(leaf(1.0))"),
    (TypeError, r"np\.fft\.fft has no .*defvjp.* give it t\.data where", "np.fft.fft(leaf([1.0]))"),
    (TypeError, r"^gamma has no .*with defvjp\(gamma, ", "scipy.special.gamma(leaf(1.0))"),
    (TypeError, r"np\.savez has.*give it t\.data", "np.savez(io.BytesIO(), t=Tensor([1.0]))"),
    (TypeError, r"np\.where.*argument 0: detach\(\)", "np.where(leaf([1.0]), 1.0, 2.0)"),
    (TypeError, r"unsupported operand", "leaf(1.0) + 'a'", "object() * leaf(1.0)"),
    (TypeError, r"len\(\) of unsized", "len(leaf(1.0))", "list(leaf(1.0))"),
    (TypeError, r"graph, which np\.copy\(t\) keeps.*detach", "copy.deepcopy(leaf(1.0) * 2)"),
    (TypeError, r"cannot follow reading \.data", "jit(lambda x: copy.copy(x))(np.ones(2))"),
    (ValueError, r"\.detach\(\) cuts it off", "setattr(leaf(1.0) * 2, 'requires_grad', False)"),
    (TypeError, r"no float argument", "gradcheck(lambda x: x * 2, 2)"),
    (TypeError, r"no dict: write gradcheck\(lambda", "gradcheck(len, {'q': np.ones(2)})",
     "gradcheck(max, 1.0, {'q': [leaf(2.0)]})"),
    (TypeError, r"takes a Tensor, not ndarray", "to_dot(np.ones(3))"),
    (TypeError, r"integer", "[1, 2][leaf(1.0)]"),
    (ValueError, r"ambiguous", "bool(leaf([1.0, 2.0]))"),
    (ValueError, r"size 1", "leaf([1.0, 2.0]).item()"),
    (IndexError, r"index 2 is out of bounds", "leaf([1.0, 2.0])[2]"),
    (ValueError, r"got no parameters: give it those", "SGD(iter([]), lr=0.1)"),
    (ValueError, r"got a parameter twice: give each once", "SGD([leaf(1.0)] * 2, lr=0.1)"),
    (ValueError, r"list of Tensors: write \[w\]", "SGD(leaf([1.0]), lr=0.1)"),
    (ValueError, r"parameter 0, ndarray, is not one", "SGD([np.ones(2)], lr=0.1)"),
    (ValueError, r"parameter 0", "SGD([leaf(1.0) * 2], lr=0.1)"),
    (ValueError, r"parameter 1, Tensor, is not", "SGD([leaf(1.0), Tensor(1.0)], lr=0.1)"),
    *[(ValueError, rf"SGD got {said}: it must be", f"SGD([leaf(1.0)], **dict(lr=0.1) | dict({said}))")
      for said in ("lr=-0.1", "lr=nan", "lr=None", "momentum=-1", "weight_decay=-1")],
    (ValueError, r"without momentum", "SGD([leaf(1.0)], lr=0.1, nesterov=True)"),
]  # fmt: skip
for kind, why in [what.split(".*", 1) for what in JIT_ERRORS]:
    ERRORS.append((eval(kind), why, *calls(JIT_ERRORS[f"{kind}.*{why}"])))


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize(("row", "said"), [pytest.param(row, said, id=said) for row in ERRORS for said in row[2:]])
def test_bad_input_gives_one_clear_sentence_and_nothing_of_the_failure_is_left(row, said):
    before = W_OUTSIDE.data.tolist(), W_OUTSIDE.grad
    with pytest.raises(row[0], match=row[1]) as caught:
        eval(said, globals())
    assert "\n" not in str(caught.value)
    assert (W_OUTSIDE.data.tolist(), W_OUTSIDE.grad) == before
    assert jit(lambda x: x * 2)(1.0) == 2


@pytest.mark.parametrize("name", ["sum", "mean", "prod", "var"])
def test_what_an_error_says_to_do_computes_the_same_with_the_same_gradient(name):
    x, dtype = np.array([[1.0, -2.0, 3.0], [0.1, 4.0, -1.0]]), np.float32
    with pytest.raises(TypeError) as caught:
        getattr(np, name)(leaf(x), dtype=dtype)
    assert "leave" not in str(caught.value)
    advice, plain = re.search(r"as (.*) says (.*)$", str(caught.value)).groups()
    t, names = leaf(x), {"np": np, "dtype": dtype}
    result, expected = eval(advice, names | {"t": t}), eval(plain, names | {"t": x})
    assert (result.data, result.dtype) == (expected, expected.dtype)
    result.backward()
    np.testing.assert_array_equal(t.grad, np.ones((2, 3)))


def test_no_message_gives_an_advice_that_changes_a_result():
    texts = [str(node.value) for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.Constant)]
    lines = [text for text in texts if "\n" not in text]
    assert len(lines) > 100
    assert [line for line in lines if re.search(r"leave it out|real part|t\.data$|detach\(\) (that|it)", line)] == []


def test_array_element_assignment_of_a_tensor_is_refused_and_says_why():
    with pytest.raises(ValueError, match="setting an array element") as caught:  # NumPy's words; ours are their cause
        operator.setitem(np.zeros(2), 0, leaf(1.0))
    assert ".item()" in str(caught.value.__cause__)
    operator.setitem(array := np.zeros(2), 0, Tensor(3.0))
    assert array.tolist() == [3.0, 0.0]


# --- The documentation ------------------------------------------------------------------------------------------------


def test_everything_public_has_an_example_that_prints_what_it_says_and_tells_what_it_raises():
    with np.errstate(all="ignore"):  # one divides by zero
        assert doctest.testmod(tinygrad_lite, optionflags=doctest.ELLIPSIS).failed == 0
    tests = {test.name.removeprefix("tinygrad_lite."): test for test in doctest.DocTestFinder().find(tinygrad_lite)}
    assert [name for name in (*tinygrad_lite.__all__, "SGD.step", "SGD.zero_grad") if not tests[name].examples] == []
    silent = {name for name in tinygrad_lite.__all__ if "Raises\n" not in tests[name].docstring}
    assert silent == {"no_grad", "relu", "sigmoid"}
    methods = [name for name in vars(Tensor) if name[0] != "_"]
    assert len(methods) > 40
    assert [name for name in methods if not inspect.getdoc(getattr(Tensor, name))] == []


def diagram_of(text: str) -> tuple[dict[str, str], set[str], list[tuple[str, str]]]:
    """The boxes, those that are round, and the arrows of a diagram: of to_dot's, or of the README's, in Mermaid."""
    text = re.sub(r"\(\) float64(\\n)?", "", text).replace("\\n", "<br>")
    boxes = re.findall(r'(\w+)(\(?\[| \[label=)"(.*?)"(, style)?', text)
    round_ones = {name for name, before, _, after in boxes if before == "([" or after}
    return {name: label for name, _, label, _ in boxes}, round_ones, re.findall(r"(\w+) -+> (\w+)", text)


def assert_chain_rule(labels: dict[str, str], arrows: list[tuple[str, str]]) -> None:
    """The gradients that a diagram shows follow from its values: by differences, from those of what a box goes into."""
    boxes = {name: label.split("<br>") for name, label in labels.items()}
    gradients = {name: float(parts[2].removeprefix("gradient ")) for name, parts in boxes.items() if len(parts) > 2}
    sums = dict.fromkeys(boxes, 0.0) | {next(iter(boxes)): 1.0}
    for name, parts in boxes.items():
        operands = [start for start, end in arrows if end == name]
        numbers = [float((boxes[x] * 2)[1]) for x in operands]
        function = operator.attrgetter(parts[0].removeprefix("np."))(np) if operands else None
        for x, g in zip(operands, central_differences(function, numbers, gradients.get(name)), strict=True):
            sums[x] += g
    assert {name: sums[name] for name in gradients} == pytest.approx(gradients, rel=1e-6)


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def prose_of(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


RECIPES = python_blocks(README.read_text().partition("## Recipes")[2].partition("## The code by")[0])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_and_links_in_the_readme_and_the_docs_exist(page):
    for name in re.findall(r"`(_\w+)`", prose_of(page)):
        known = re.search(rf"^\s*(def|class) {name}\b|^{name}\b", SOURCE, re.MULTILINE)
        assert known or hasattr(np.ndarray, name), name
    links = re.findall(r"\]\(([^)]+)\)", prose_of(page))
    assert links
    for path, _, anchor in [link.partition("#") for link in links if not link.startswith("https://")]:
        target = page.parent / path if path else page
        titles = re.findall(r"^#+ (.*)$", prose_of(target), re.MULTILINE) if anchor else [""]
        assert target.exists(), path
        assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], anchor


def test_readme_has_its_contents_links_to_each_page_and_recipes_of_twelve_lines_at_most():
    prose = prose_of(README)
    contents = prose.split("**Contents**", 1)[1].split("\n\n", 1)[0]
    assert re.findall(r"\[([^]]+)\]", contents) == re.findall(r"^## (.*)$", prose, re.MULTILINE)
    assert {f"docs/{page.name}" for page in DOCS} <= {*re.findall(r"\]\(([^)#]+)", prose)}
    assert len(README.read_text().splitlines()) <= 620
    assert len(RECIPES) >= 12
    assert [block for block in RECIPES if len([*filter(str.strip, block.splitlines())]) > 12] == []
    assert [block for block in RECIPES if not re.search("^ *(print|class)", block, re.MULTILINE)] == []


def test_how_it_works_goes_through_the_heart_in_its_order_and_shows_rules_that_stand_there():
    part = README.read_text().partition("## How it works\n")[2].partition("## What a Tensor does\n")[0]
    titles = " ".join(re.findall(r"^### (.*)$", part, re.MULTILINE))
    assert [*dict.fromkeys(re.findall("|".join(HEART), titles))] == HEART
    assert f"{', '.join(HEART)}." in part
    goals = "how autograd works inside", "computational graphs and node tracking", "backpropagation by topological sort"
    goals += "gradient accumulation and zeroing", "operator overloading for clean syntax"
    assert [goal for goal in (*goals, "shape handling and broadcasting") if goal not in titles.lower()] == []
    rules = re.findall(r"`((?:lambda g, _, |-g \* )[^`]+)`", part)
    assert [rule in up_to("NumPy's functions") for rule in rules] == [True] * 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_of_the_readme_and_the_docs_print_what_they_say(capsys, request, monkeypatch, tmp_path, page):
    monkeypatch.chdir(tmp_path)  # where one saves its parameters
    names: dict[str, Any] = {"__name__": "__main__"}
    printed, text = "", page.read_text()
    client = "Client(n_workers=2, threads_per_worker=1)"
    if client in text:
        text = text.replace(client, f"Client({request.getfixturevalue('cluster').scheduler_address!r})")
    for language, block in re.findall(r"```(python|mermaid)\n(.*?)```", text, re.DOTALL):
        if re.search("^import (torch|jax|numba)$", block, re.MULTILINE):
            continue  # see below
        if language == "mermaid":  # the graph that the block before drew
            assert block.startswith("flowchart TD\n")
            labels, *rest = diagram_of(block)
            drawn = {name: re.sub("(np.*)<br>gradient .*", r"\1", label) for name, label in labels.items()}
            assert (drawn, *rest) == diagram_of(names.pop("graph"))
            assert_chain_rule(labels, rest[-1])
            continue
        if block.startswith("import numpy as np\n\n\ndef "):  # what the block before prints
            assert printed.rstrip() == block.rstrip()
            continue
        names = {"__name__": "__main__"} if block.startswith("import numpy as np\n") else names  # a new beginning
        exec(block, names)
        printed = capsys.readouterr().out
        if not printed.startswith("import numpy"):
            assert printed.splitlines() == re.findall(r"^ *print.*  # (.*)$", block, re.MULTILINE)


def recipe(text: str, **names: Any) -> Any:
    """What the one recipe with this text defines."""
    (block,) = [block for block in RECIPES if text in block]
    exec(block, names)
    return names[text.split()[-1]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_adam_of_the_recipes_is_that_of_autograd(dtype):
    x, weights = np.array([1.0, -2.0, 3.0], dtype), np.array([1.0, 100.0, 0.01], dtype)
    p, skipped = leaf(x, dtype), leaf(1.0)
    optimizer = recipe("class Adam", SGD=SGD, np=np)([p, skipped], lr=0.05)
    for steps in range(1, 30):
        optimizer.zero_grad()
        (np.cos(p) * weights).sum().backward()
        optimizer.step()
        expected = autograd.misc.optimizers.adam(lambda x, _: -np.sin(x) * weights, x, num_iters=steps, step_size=0.05)
        np.testing.assert_allclose(p.data, expected, rtol=1e-4 if dtype == np.float32 else 1e-10)
    assert (p.dtype, skipped.item()) == (dtype, 1.0)


def test_convolution_of_the_recipes_is_that_of_the_fourier_transforms():
    rng = np.random.default_rng(0)
    convolution = recipe("def convolution", np=np, rng=rng, gradcheck=gradcheck)
    images, kernels = rng.normal(size=(2, 6, 7, 3)), rng.normal(size=(2, 4, 3, 5))
    a, b = np.fft.fft2(images, axes=(1, 2)), np.fft.fft2(kernels, (6, 7), axes=(0, 1))
    expected = np.fft.ifft2(np.einsum("rijc,ijcf->rijf", a, b.conj()), axes=(1, 2))[:, :5, :4]
    np.testing.assert_allclose(convolution(images, kernels), expected, rtol=1e-10, atol=1e-12)


def needs(library: str) -> None:
    how = "pip install torch, then pytest" if library == "torch" else "uv run --group bench pytest"
    pytest.importorskip(library, reason=f"compared with {library}, which is not installed here: {how} runs this")


@pytest.mark.parametrize("library", ["torch", "jax", "numba"])
def test_examples_for_other_libraries_print_what_they_say(tmp_path, library):
    blocks = python_blocks("\n".join([page.read_text() for page in PAGES]))
    blocks = [block for block in blocks if f"\nimport {library}\n" in f"\n{block}"]
    assert len(blocks) == {"torch": 2, "jax": 2, "numba": 1}[library]
    for block in blocks:
        compile(block, "fit.py", "exec")
    needs(library)
    for block in blocks:
        (tmp_path / "fit.py").write_text(block)
        many = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if block.startswith("# torchrun") else []
        done = subprocess.run([sys.executable, *many, tmp_path / "fit.py"], capture_output=True, text=True)
        assert (done.returncode, done.stdout.splitlines()) == (0, re.findall(r"print.*  # (.*)$", block, re.MULTILINE))


def test_tables_of_peers_have_all_names_and_say_what_peers_do_with_an_ordinary_function():
    text = (HERE / "docs" / "peers.md").read_text()
    table = text[text.index("| here | PyTorch | JAX |") : text.index("The same training in each:")]
    here = " ".join(row.split("|")[1] for row in table.splitlines() if row.startswith("| `"))
    assert {*tinygrad_lite.__all__} <= {*re.findall(r"`(\w+)", here)}
    for library, path, name in re.findall(r"`(torch|jax)((?:\.\w+)*)\.(\w+)", table):
        if importlib.util.find_spec(library):
            assert hasattr(importlib.import_module(library + path), name), name
    exec(re.search(r"def energy\(w\):\n.*?\n\n\n", text, re.DOTALL)[0], names := {"np": np, "grad": grad})
    energy, w = names["energy"], np.array([1.0, 2.0, 3.0])
    slope, curvature = (f(energy)(w).round(3).tolist() for f in (grad, hessian))
    numbers, refusal = f"{slope} | {curvature[0]} ...", "no implementation found for 'numpy.dot'"
    rows = {"tinygrad_lite": numbers, "HIPS autograd 1.9": numbers, "MyGrad 2.3": f"TypeError: {refusal} | has none"}
    assert [peer for peer, row in rows.items() if f"| {peer} | {row} |" not in text] == []
    if importlib.metadata.version("autograd").startswith("1.9."):  # before, it was an error
        np.testing.assert_allclose(autograd.grad(energy)(w), slope, atol=6e-4)
        np.testing.assert_allclose(autograd.hessian(energy)(w), curvature, atol=6e-4)
    if importlib.util.find_spec("mygrad"):
        with pytest.raises(TypeError, match=refusal):
            energy(importlib.import_module("mygrad").tensor(w))


def test_the_docs_name_the_functions_of_the_table_and_no_others():
    text = (HERE / "docs" / "functions.md").read_text()
    listed = text[text.index("These of NumPy's functions") : text.index("Every other function")]
    names = {name for span in re.findall(r"`([^`]+)`", listed) for name in span.split()} - {"np.linalg"}
    table = {f.__name__ for f in ROWS if isinstance(f, np.ufunc) or hasattr(f, "_implementation")}
    assert names == table
    (about,) = re.findall(r"Some (\d+) functions take Tensors", README.read_text())
    assert int(about) <= len(table) < int(about) + 50


@pytest.mark.parametrize("script", [train_linear, train_gender])
def test_the_docs_name_the_options_of_the_scripts_and_no_others(capsys, script):
    with pytest.raises(SystemExit):
        script.main(["--help"])
    options = {*re.findall(r"(?<![\w-])--[a-z-]+", capsys.readouterr().out)} - {"--help"}
    part = (HERE / "docs" / "scripts.md").read_text().split(f"## `{script.__name__}.py`\n")[1].split("\n## `")[0]
    rows = [row.split("|")[1] for row in part.splitlines() if row.startswith("| `--")]
    assert {name for row in rows for name in re.findall("`(--[a-z-]+)", row)} == options


# --- benchmarks/peers.py ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def peers() -> Any:
    gc.freeze()  # as each first run of a program collects garbage
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE / "benchmarks")
        return importlib.import_module("peers")


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # by autograd
@pytest.mark.parametrize(("library", "numbers", "names"), [
    ("autograd", range(1, 10), ("tinygrad_lite", "tinygrad_lite jit", "tinygrad_lite jit, lower", "autograd")),
    ("numba", (1, 2, 3), ("source + numba",)), ("jax", (1, 2, 3, 4), ("source + JAX",)),
])  # fmt: skip
def test_programs_of_the_benchmark_and_its_sources_when_compiled_do_the_same_work(peers, library, numbers, names):
    needs(library)
    for name, workload in shared_out(peers.WORKLOADS.items()) if library == "autograd" else peers.WORKLOADS.items():
        if workload.number in numbers and not re.search("512|0,000", name):
            for program in {*names} & {*workload.programs}:
                importlib.import_module("programs").ready(name, program)  # ends where the results differ


def test_the_benchmark_ends_where_results_are_not_those_by_hand(peers, monkeypatch):
    programs = importlib.import_module("programs")
    right = programs.WORKLOADS["chain of 1,000 multiplications"]
    assert programs.difference([np.ones(2), [np.zeros(2) + 4]], (np.ones(2), np.array([2.0, 8.0]))) == 0.5
    assert programs.difference(1.0, np.ones(1)) == np.inf
    for factor, message in ((2, "differs by 0.5 of the largest"), (np.nan, "differs by nan")):
        wrong = right._replace(by_hand=lambda x, factor=factor: (factor * right.by_hand(x)[0], right.by_hand(x)[1]))
        monkeypatch.setitem(programs.WORKLOADS, f"wrong by {factor}", wrong)
        with pytest.raises(SystemExit, match=message):
            programs.ready(f"wrong by {factor}", "tinygrad_lite")


def test_the_benchmark_says_what_ended_a_program(peers, monkeypatch):
    compare = functools.partial(peers.compare, "chain of 1,000 multiplications", "tinygrad_lite")
    assert compare(patience=0.01) == {"failed": "over 0.01 s"}
    done = subprocess.CompletedProcess([], 1, "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    for done.returncode, done.stderr, failed in (
        (1, "Traceback ...\nRecursionError: maximum recursion depth exceeded\n", "RecursionError"),
        (1, "Traceback ...\nnumba.core.errors.TypingError: Failed in nopython mode\n", "TypingError"),
        (-11, "", "SIGSEGV"),
    ):
        assert compare() == {"failed": failed}
    done.returncode, done.stderr = 1, "it differs by 1"
    with pytest.raises(SystemExit, match="it differs by 1"):
        compare()


def test_the_benchmark_measures_with_pyperf_and_finds_the_memory_of_a_run_whatever_started_it(peers):
    large = np.ones(40_000_000)
    measured, here = peers.measure("chain of 100,000 multiplications", ["by hand", "tinygrad_lite"], turns=1)
    assert measured["by hand"]["ratio"] == 1
    assert 0 < measured["by hand"]["seconds"] < 60
    assert measured["tinygrad_lite"]["ratio"] > 0
    assert here["cpu_count"] == os.cpu_count()
    if sys.platform.startswith("linux"):  # other systems do not forget earlier peaks
        assert 1e7 < measured["tinygrad_lite"]["memory"] < large.nbytes


def test_the_table_of_times_and_what_the_readme_tells_of_them_are_those_of_the_last_run(peers):
    results = json.loads((HERE / "benchmarks" / "results.json").read_text())
    text, told = (HERE / "docs" / "speed.md").read_text(), " ".join(README.read_text().split())
    assert {workload.number for workload in peers.WORKLOADS.values()} == {*range(1, 11)}
    assert {*results["workloads"]} == {*peers.WORKLOADS}
    assert peers.table(results) in text
    assert [results[what] for what in ("date", "processor", "python") if results[what] not in text] == []
    assert "<svg" in (HERE / "benchmarks" / "results.svg").read_text()
    assert "(../benchmarks/results.svg)" in text
    assert "(benchmarks/results.svg)" in told
    ((most, low, high),) = re.findall(r"at most ([\d.]+) times as long .*?([\d.]+) to ([\d.]+) times as long", told)
    programs = "tinygrad_lite jit", "tinygrad_lite"
    jitted, eager = (pd.DataFrame(results["workloads"]).loc[program].str["ratio"] for program in programs)
    networks = jitted.index.str.startswith("network")
    assert sum(networks) >= 3
    assert jitted[networks].max() <= float(most)
    assert eager[networks].between(float(low), float(high)).all()
    ratios = [f"{program['one scalar SGD step']:.2g}" for program in (jitted, eager)]
    assert f"takes {' and '.join(ratios)} times as long" in told


def test_the_table_and_the_picture_of_times_do_without_programs_that_were_not_there(peers, tmp_path):
    hand, eager = {"seconds": 2e-3, "ratio": 1.0, "memory": 5_000_000}, {"seconds": 4e-3, "ratio": 2.0, "memory": 0}
    measured = {"by hand": hand, "tinygrad_lite": eager, "source + JAX": {"failed": "over 60 s"}}
    rest = {"by hand": {"seconds": 3.0, "ratio": 1.0}, "tinygrad_lite": {"seconds": 6.0, "ratio": 2.0}}
    results = {"workloads": {"one": measured, "two": rest}}
    assert peers.table(results).splitlines() == [
        "| | by hand | tinygrad_lite | source + JAX |",
        "| --- | --- | --- | --- |",
        "| one | 2 ms | 2 | over 60 s |",
        "| its peak memory | 5 MB | 0 MB | over 60 s |",
        "| two | 3 s | 2 |  |",
    ]
    where = {"date": "2026-01-01", "processor": "one", "cores": 2, "python": "3.11", "versions": {"numpy": "2"}}
    peers.draw(results | where, tmp_path / "results.svg")
    picture = (tmp_path / "results.svg").read_text()
    assert [name for name in peers.PROGRAMS if f"<!-- {name} -->" in picture] == ["by hand", "tinygrad_lite"]


# --- The scripts ------------------------------------------------------------------------------------------------------


def printed(capsys: Any, script: Any, *args: object) -> tuple[str, str]:
    """What a script that succeeds prints, in this process, on standard output and standard error."""
    assert script.main([*map(str, args)]) == 0
    return capsys.readouterr()


def report(capsys: Any, script: Any, *args: object) -> Any:
    """The JSON report of a script in this process; nan and infinity, which are not JSON, fail."""
    out, _ = printed(capsys, script, *args, "--json")
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def fails_with_one_sentence(capsys: Any, script: Any, argv: Any, message: str) -> None:
    try:
        code = script.main([*map(str, argv)])
    except SystemExit as end:  # of argparse
        code = end.code
    out, err = capsys.readouterr()
    assert (code, err.count("\n"), "Traceback" in err, "nan" in out) == (2, 1, False, False), err
    assert re.search(message, err), err
    assert len(err) < 600


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


COUNT = np.arange(1, 20)
PEOPLE = {"Gender": ["male", "Female"] * 9 + ["male"], "Age": 20 + COUNT**2 % 41, "Height (cm)": 170 + COUNT}
TABLES = {
    train_linear: pd.DataFrame({"x": COUNT, "y": 3 * COUNT + 7}),
    train_gender: pd.DataFrame(PEOPLE | {"Income (USD)": 1000 * COUNT}),
}
SHORT = {train_linear: "--rows 9", train_gender: "--source sample --epochs 9"}
both = pytest.mark.parametrize("script", TABLES, ids=lambda script: script.__name__)


@both
def test_scripts_read_a_file_whatever_its_layout(capsys, tmp_path, script):
    text = TABLES[script].to_csv(index=False)
    files = {
        "bom.csv": text.encode("utf-8-sig"),
        "utf-16.csv": text.encode("utf-16"),
        "zipped.csv.gz": gzip.compress(text.encode()),
        "zipped.csv": gzip.compress(text.encode()),
        "blanks.csv": text.replace(",", " , ").replace("\n", "\r\n\r\n").encode(),
        "commas.csv": text.replace("\n", ",\n").encode(),
        "backwards.csv": TABLES[script].assign(note='a, "b"\nc').iloc[:, ::-1].to_csv(index=False).encode(),
    }
    expected = script.read(write(tmp_path / "plain.csv", text.encode()))
    numbers = TABLES[script].replace({"male": "1", "Female": "0"}).astype(float).to_numpy()
    np.testing.assert_array_equal(expected, numbers.T if script is train_linear else numbers)
    for name, content in files.items():
        np.testing.assert_array_equal(script.read(write(tmp_path / name, content)), expected, name)


def bad_files(script: Any) -> dict[str, str]:
    """Texts of files, and what is to be said of them."""
    header, a, b, c, *rest = TABLES[script].to_csv(index=False).splitlines()
    start, column = a.rpartition(",")[0], TABLES[script].columns[-2]
    with_line = lambda line: "\n".join([header, a, b, line, *rest])  # noqa: E731
    with_column = lambda name, values: TABLES[script].assign(**{name: values}).to_csv(index=False)  # noqa: E731
    overflow = {with_column("x", [1, *[1e200] * 18]): "must vary", with_column("y", COUNT * 1e-170): "overflow"}
    return {
        "": "No columns", "\n\n": "No columns", f"{header}\n": "(0|has 0) rows",
        "\n".join([header, a, b, c]): "3 .*(few|5 rows)", with_line(f"{start},old"): "row 3: .*'old'",
        with_line(f"{start},"): "row 3: .*''", with_line(f"{c},5,6"): "fields in line 4",
        with_line(f'"{c}'): "inside string", f"a{with_line(c)}": "columns? .*not in index|columns",
        "<!doctype html>\n<html>\n": "columns", '{"x": [1, 2], "y": [1, 2]}': "columns",
        "\x00\x01\x02PNG": "columns", "\x89PNG\r\n": "utf-8|columns",
        with_column(column, 3): "must vary", with_column(column, 0.1): "must vary",
    } | (overflow if script is train_linear else {})  # fmt: skip


BAD = [
    *[(s, f"{option} bad.csv", message, text) for s, option in ((train_linear, "--data"), (train_gender, "--csv"))
      for text, message in bad_files(s).items()],
    *[(s, f"{SHORT[s]} --json --plot {path}", message, "") for s in TABLES
      for path, message in (("no/x.png", "No such file"), ("x.what", "what"))],
    *[(train_linear, options, message, "") for options, message in [
        ("--rows 1", "too few"), ("--rows 99999999999999999999", "--rows"), ("--rows 1.5", "--rows.*1.5"),
        ("--batch-size -1", "negative"), ("--epochs -1", "negative"), ("--seed -1", "negative"), ("--lr x", "--lr.*x"),
        ("--lr nan", "overflowed"), ("--rows 100 --lr 1e9", "overflowed in epoch 1.*--lr below 1e"),
        ("--rows 100 --lr 1e300 --batch-size 10", "overflowed in epoch 1"), ("--dask nonsense://x", "nonsense"),
        ("--data none.csv", "none.csv.*No such file"), ("--data .", "irectory"), ("--rows 9 --data x", "data.*rows"),
        ("--rows 9 --save-data /dev/full", "No space"), ("--rows 9 --save-data no/x.csv", "no")]],
    *[(train_gender, options, message, "") for options, message in [
        ("--csv none.csv", "none.csv.*No such file"), ("--csv .", "irectory"), ("--source web", "--source.*web"),
        ("--source sample --csv x.csv", "--csv.*--source")]],
    *[(train_gender, f"--source sample {options}", message, "") for options, message in [
        ("--batch-size 0", "--batch-size"), ("--hidden -1", "negative"), ("--epochs x", "--epochs.*x"),
        ("--lr -1", "lr=-1"), ("--lr 1e300", "overflowed in epoch"), ("--seed -1", "[Ss]eed|negative"),
        ("--momentum nan", "momentum"), ("--test-fraction 0.001", "in both parts"),
        ("--test-fraction 1", "in both parts")]],
]  # fmt: skip


@pytest.mark.parametrize(("script", "options", "message", "text"), BAD)
def test_scripts_refuse_bad_input_in_one_sentence(capsys, tmp_path, monkeypatch, script, options, message, text):
    monkeypatch.chdir(tmp_path)
    Path("bad.csv").write_text(text, "latin-1")
    fails_with_one_sentence(capsys, script, options.split(), message)


@both
def test_output_that_cannot_be_written_is_one_sentence(script):
    start = f"{sys.executable} {HERE / script.__name__}.py {SHORT[script]}"
    for redirection, code in (">/dev/full", 2), (">&-", 2), ("| true", 2), ("2>&-", 0):
        command = ["bash", "-c", f"sleep 0; {start} {redirection}; exit ${{PIPESTATUS[0]}}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr.count("\n")) == (code, code // 2), (redirection, done.stderr)
        assert bool(done.stdout) == (code == 0)


def on_a_terminal(*command: Any, until: str = "never") -> tuple[str, str, int]:
    """What a command prints on a pipe, and as errors on a terminal, and its exit code; at the pattern comes Ctrl-C."""
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    shown, options = b"", {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, *map(str, command)], stderr=terminal, **options) as process:
        os.close(terminal)
        limit = threading.Timer(60, process.kill)
        limit.start()
        with contextlib.suppress(OSError):  # at the end of the process
            while True:
                shown += os.read(master, 10_000)
                if re.search(until, shown.decode(errors="replace")):
                    process.send_signal(signal.SIGINT)
                    until = "never"
        limit.cancel()
        os.close(master)
        return process.stdout.read(), shown.decode(), process.wait()


@pytest.mark.parametrize(("script", "options", "bar", "last"), [
    (train_linear, ["--rows", 900_000, "--eager"], r"epoch 1: +\d+%\|.*/900000 ", "least squares  y = "),
    (train_gender, ["--source", "sample", "--epochs", 800_000], r"\d+%\|.*/800001 ", " 1.0 | 0.0 "),
])  # fmt: skip
def test_a_bar_shows_how_far_a_long_run_is_and_ctrl_c_ends_it_with_the_report_so_far(script, options, bar, last):
    out, shown, code = on_a_terminal(HERE / f"{script.__name__}.py", *options, until=bar)
    assert (code, "%" in out, "Traceback" in shown, bool(re.search(bar, shown))) == (130, False, False, True)
    assert re.search(last, out.splitlines()[-1])
    out, shown, code = on_a_terminal(HERE / f"{script.__name__}.py", *SHORT[script].split())
    assert (shown.strip(" \r"), code) == ("", 0)  # no bar in a short run
    assert script is train_gender or re.search(r"fitted +y = 1\.000000 x", out)


@both
def test_plots_are_pictures_of_all_that_is_asked(capsys, tmp_path, monkeypatch, script):
    matplotlib.pyplot.close("all")
    report(capsys, script, *SHORT[script].split(), "--plot", tmp_path / "picture.png")
    assert min(matplotlib.pyplot.imread(tmp_path / "picture.png").shape[:2]) > 300
    assert len(matplotlib.pyplot.get_fignums()) == 1
    left, right = matplotlib.pyplot.gcf().axes
    assert all(len(line.get_ydata()) in (51, 10) for line in left.get_lines())
    assert left.get_yscale() == "log"
    assert len(right.get_lines()) + len(right.collections) == 2
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in (left, right))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot")
    monkeypatch.setattr(script, "load", lambda _: pytest.fail("data was read before that"))
    fails_with_one_sentence(capsys, script, [*SHORT[script].split(), "--plot", "x.png"], "matplotlib")


# --- train_linear.py --------------------------------------------------------------------------------------------------


def line_through(capsys: Any, path: Path, x: Any, y: Any, *options: object) -> Any:
    pd.DataFrame({"x": x, "y": y}).to_csv(path, index=False)
    return report(capsys, train_linear, "--data", path, *options)


X_AS_PEOPLE_HAVE_THEM = {
    "years": lambda rng, n: 1990.0 + np.arange(n),
    "incomes": lambda rng, n: rng.lognormal(10, 1.5, n).round(2),
    "around 1e9": lambda rng, n: 1e9 + np.arange(n),
    "around 1e-9": lambda rng, n: rng.integers(-999, 999, n) * 2.0**-40,
    "far out": lambda rng, n: rng.standard_cauchy(n),
    "one that differs": lambda rng, n: np.r_[np.zeros(n - 1), 1.0],
}


@pytest.mark.parametrize("seed", shared_out(range(200)))
def test_linear_finds_the_line_of_any_data_with_the_default_options(capsys, tmp_path, seed):
    rng = np.random.default_rng(seed)
    n, kind = int(np.exp(rng.uniform(np.log(5), np.log(3000)))), [*X_AS_PEOPLE_HAVE_THEM][seed % 6]
    x = X_AS_PEOPLE_HAVE_THEM[kind](rng, n)
    x[0] += np.ptp(x) == 0
    # Whole numbers, times a power of two, so that the rows lie on the line exactly.
    slope, intercept = float(rng.integers(1, 99)), float(rng.integers(-9999, 9999)) * (2.0**-30 if x.max() < 1 else 1)
    batch = [1, 1, 2 + n // 500, 3 + n // 300, 7, 64, 999, n, n // 2][rng.integers(9)]  # at most 500 steps beyond 1
    found = line_through(capsys, tmp_path / "exact.csv", x, slope * x + intercept, "--batch-size", batch)
    scale = 0 if kind != "far out" else np.abs(slope * x).max() * 1e-9  # where rows are rounded
    assert found["slope"] == pytest.approx(slope, rel=5e-7)
    assert found["intercept"] == pytest.approx(intercept, rel=5e-7, abs=scale)
    # With noise, within one standard error of the least-squares line, worked out here with longer floats.
    y = slope * x + intercept + rng.normal(0, np.std(slope * x) * 10 ** rng.uniform(-2, 1), n)
    found = line_through(capsys, tmp_path / "noisy.csv", x, y, "--batch-size", batch, "--seed", seed)
    d, y = np.longdouble(x) - np.longdouble(x).mean(), np.longdouble(y)
    best, center = (d * (y - y.mean())).sum() / (d * d).sum(), np.longdouble(x).mean()
    error = np.sqrt(((y - y.mean() - best * d) ** 2).sum() / (n - 2))
    assert abs(found["slope"] - best) < error / np.sqrt((d * d).sum())
    intercept_error = error * np.sqrt(1 / n + center**2 / (d * d).sum())
    assert abs(found["intercept"] - (y.mean() - best * center)) < intercept_error
    polynomial = np.polyfit(x - x.mean(), y.astype(float), 1)
    assert found["least_squares"]["slope"] == pytest.approx(polynomial[0], rel=1e-6, abs=1e-9 * abs(slope))
    assert found["rmse"] == pytest.approx(found["least_squares"]["rmse"], rel=1e-2)


@pytest.mark.parametrize("options", [
    "", "--rows 5", "--rows 5000 --batch-size 999", "--rows 1000 --batch-size 64", "--rows 1000000 --batch-size 1000",
    "--rows 300 --eager", "--rows 60 --eager --batch-size 7"])  # fmt: skip
def test_linear_finds_and_shows_the_line_of_the_rows_that_it_makes(capsys, options):
    out, err = printed(capsys, train_linear, *options.split())
    *epochs, fitted, best = out.splitlines()
    assert (err, len(epochs)) == ("", 50)
    for line, name in (fitted, "fitted"), (best, "least squares"):
        assert re.fullmatch(rf"{name} +y = 1\.000000 x - 1\.000000 +\(root mean squared error \S+\)", line)


def test_linear_reports_its_line_and_the_least_squares_line_and_warns_where_they_differ(capsys, tmp_path):
    rng, file = np.random.default_rng(0), tmp_path / "saved.csv"
    assert report(capsys, train_linear, "--rows", 500, "--save-data", file)["epochs"] == 50
    np.testing.assert_array_equal(pd.read_csv(file)[["x", "y"]], np.c_[np.arange(500), np.arange(500) - 1])
    x = rng.uniform(-400, 900, 300)
    y = 2e5 - 30 * x + rng.normal(0, 2000, 300)
    found = line_through(capsys, file, x, y, "--epochs", 200)
    slope, intercept = np.polyfit(x, y, 1)
    rmse = np.sqrt(np.mean((slope * x + intercept - y) ** 2))
    for line, rel in ((found["least_squares"], 1e-12), (found, 1e-3)):
        assert [line["slope"], line["intercept"]] == pytest.approx([slope, intercept], rel=rel)
        assert line["rmse"] == pytest.approx(rmse, rel=rel**2 + 1e-12)
    _, err = printed(capsys, train_linear, "--data", file, "--epochs", 1, "--lr", 1e-6)
    assert re.fullmatch("warning: .*least-squares.*--epochs.*\n", err)
    level = line_through(capsys, file, x, 0 * x + 7)
    assert [level["slope"], level["intercept"], level["rmse"]] == [0, 7, 0]


@pytest.mark.parametrize("way", [(), ("--eager",)])
@pytest.mark.parametrize("size", [1, 2])
def test_linear_steps_are_those_of_gradient_descent_by_hand_in_the_order_of_the_seed(capsys, tmp_path, size, way):
    x, y = np.array([0.5, -1.0, 2.0, 3.5, 1.0]), np.array([1.0, 0.0, -1.0, 4.0, 2.5])
    u, v = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    for seed in 7, 8:
        options = "--epochs", 3, "--lr", 0.05, "--seed", seed, "--batch-size", size, *way
        found = line_through(capsys, tmp_path / "few.csv", x, y, *options)
        rng, w, b = np.random.default_rng(seed), 0.0, 0.0
        for epoch in range(3):
            for i in rng.permutation(range(0, 5, size)):
                error, rate = w * u[i : i + size] + b - v[i : i + size], 0.05 * (1 - (epoch / 3) ** 2)
                w, b = w - rate * 2 * np.sum(error * u[i : i + size]), b - rate * 2 * np.sum(error)
        slope = w * y.std() / x.std()
        assert found["slope"] == pytest.approx(slope, rel=1e-12)
        assert found["intercept"] == pytest.approx(y.mean() + b * y.std() - slope * x.mean(), rel=1e-12)


@pytest.fixture
def parts(tmp_path) -> list[str]:
    """Part files, of several lengths, one without rows, one with quirks."""
    rng = np.random.default_rng(0)
    for i, size in enumerate([9_000, 2_500, 0, 6_001]):
        x = rng.uniform(-400, 900, size)
        table = pd.DataFrame({"note": "a, b", "x": x, "y": 2e5 - 30 * x + rng.normal(0, 2000, size)})
        table.to_csv(tmp_path / f"part-{i}.csv", index=False)
    write(tmp_path / "part-9.csv", b" x , y,\n" + b" 12.5, 3e5,\n" * 3)
    return sorted(map(str, tmp_path.glob("part-*.csv")))


@pytest.fixture
def address(cluster) -> Any:
    yield cluster.scheduler_address
    for client in [*distributed.client._global_clients.values()][::-1]:  # each brings back the settings before it
        client.close()


def agree_with_one_machine(capsys: Any, options: Any, where: Any) -> None:
    """The numbers of a run on Dask, wherever it is, are those of one without it."""
    one, other = (report(capsys, train_linear, *options, *way) for way in ([], ["--dask", *where]))
    assert one.keys() == other.keys()
    for what in ("slope", "intercept", "rmse", "rows", "epochs"):
        assert other[what] == pytest.approx(one[what], rel=1e-10, abs=1e-10 * abs(one["intercept"])), what


@pytest.mark.parametrize("way", [(), ("--eager",)])
def test_linear_on_dask_has_the_numbers_of_one_machine_by_one_graph_a_step(capsys, address, parts, monkeypatch, way):
    sizes, compute = [], dask.compute

    def counted(*values: Any) -> Any:
        sizes.append(len(dict(dask.base.collections_to_expr(values).__dask_graph__())))
        found = compute(*values)
        assert {np.shape(value) for value in found} <= {(), (2,)}  # no row comes back
        return found

    monkeypatch.setattr(dask, "compute", counted)
    for where in [], [address]:  # in this order: once there is a client, a run without an address takes it
        agree_with_one_machine(capsys, ["--data", *parts, "--batch-size", 4_000, "--epochs", 2, *way], where)
        sizes.clear()
        options = ["--rows", 2_100_000, "--batch-size", 1_050_000, "--epochs", 3, *way]
        agree_with_one_machine(capsys, options, where)
        # Mean, deviation, the yardstick and two errors; then two steps, of rows in one chunk or two, and an error.
        assert len(sizes) == 5 + 3 * 3
        first, second, errors = np.reshape(sizes[5:], (3, 3)).T.tolist()
        assert {*map(frozenset, zip(first, second, strict=True))} == {frozenset(sizes[5:7])}
        assert {*errors} == {sizes[3]}
    data, _ = train_linear.load(types.SimpleNamespace(dask="threads", data=None, rows=1_000_000_000))
    assert (data.shape, max(data.chunks[1])) == ((2, 1_000_000_000), 2_000_000)  # however many rows there are


def test_a_worker_that_dies_within_a_step_changes_no_number(capsys, cluster, address, parts, monkeypatch):
    compute, killed = dask.compute, []

    def kill() -> None:
        while not killed:
            for address, worker in [*cluster.scheduler.workers.items()]:
                if worker.processing and not killed:
                    nanny = next(n for n in cluster.workers.values() if n.worker_address == address)
                    os.kill(nanny.process.pid, signal.SIGKILL)
                    killed.append(address)

    def killing(*values: Any) -> Any:
        thread = threading.Thread(target=kill, daemon=True)
        if len(values) == 2 and values[0].ndim == 0 and not killed:  # a step
            thread.start()
        found = compute(*values)
        if thread.ident:
            thread.join(timeout=30)
        return found

    monkeypatch.setattr(dask, "compute", killing)
    options = ["--data", *parts, "--batch-size", 20_000, "--epochs", 3]
    agree_with_one_machine(capsys, options, [address])
    assert len(killed) == 1


def test_linear_says_in_one_sentence_what_is_wrong_with_a_cluster(capsys, address, parts, monkeypatch):
    """On a clock that is ten times as fast."""
    Path(parts[1]).write_text(Path(parts[1]).read_text() + "a,b,7\n")
    options = ["--data", *parts, "--dask", address]
    fails_with_one_sentence(capsys, train_linear, options, r"part-1\.csv, row 2501: x .*'b'")
    quiet: Any = {"dashboard_address": ":0", "silence_logs": logging.CRITICAL}
    for owner, name in (asyncio, "wait_for"), (distributed.Client, "wait_for_workers"), (distributed, "Client"):
        wait = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, timeout, wait=wait: wait(*args, timeout=timeout / 10))
    empty = distributed.LocalCluster(n_workers=0, **quiet)
    with socket.create_server(("127.0.0.1", 0)) as silent, empty:
        for where in (f"tcp://127.0.0.1:{silent.getsockname()[1]}", empty.scheduler_address):
            begin = time.monotonic()
            fails_with_one_sentence(capsys, train_linear, ["--dask", where], where)
            assert 0.4 < time.monotonic() - begin < 4
    error = train_linear.squared_error
    with distributed.LocalCluster(n_workers=1, processes=False, protocol="tcp", **quiet) as leaving:
        monkeypatch.setattr(train_linear, "squared_error", lambda *values: leaving.close() or error(*values))
        fails_with_one_sentence(capsys, train_linear, ["--dask", leaving.scheduler_address], leaving.scheduler_address)
    monkeypatch.setitem(sys.modules, "distributed", None)
    fails_with_one_sentence(capsys, train_linear, ["--dask"], "distributed")


# --- train_gender.py --------------------------------------------------------------------------------------------------
# Kaggle is a server of our own on the port that kagglehub knows as its test environment, or nobody at all: no test
# reaches farther than this machine. The real file takes part where it is at hand.

REAL_CSV = HERE.parent / "shared" / "data" / "gender.csv"  # absent on most machines


def sample_csv() -> bytes:
    text = train_gender.sample().assign(Gender=lambda t: np.where(t["Gender"], " male", "female")).to_csv(index=False)
    return text.replace("Gender", " Gender").replace("\n", ",\n").encode()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("source", ["sample", *["real"] * REAL_CSV.exists()])
def test_linear_model_settles_on_least_squares_and_yardsticks_are_right(capsys, tmp_path, source, seed):
    file = REAL_CSV if source == "real" else write(tmp_path / "sample.csv", sample_csv())
    found = report(capsys, train_gender, "--csv", file, "--seed", seed)
    table = train_gender.read(file).assign(one=1.0)
    test = table.sample(frac=0.2, random_state=seed)
    train, target = table.drop(test.index), train_gender.COLUMNS[3]
    for name, columns in (("least_squares", ["one", *train_gender.COLUMNS[:3]]), ("mean", ["one"])):
        a = train[columns].to_numpy()
        weights = np.linalg.solve(a.T @ a, a.T @ train[target].to_numpy())  # in dollars, by the normal equations
        for part, rows in (("train", train), ("test", test)):
            error = rows[target] - rows[columns] @ weights
            mse, r2 = (error**2).mean() / np.ptp(train[target]) ** 2, 1 - (error**2).mean() / rows[target].var(ddof=0)
            expected = {"mse": mse, "mae_usd": error.abs().mean(), "r2": r2}
            assert found[name][part] == pytest.approx(expected, rel=1e-8, abs=1e-12)
    for part in ("train", "test"):
        assert found["model"][part]["mse"] == pytest.approx(found["least_squares"][part]["mse"], rel=0.01)
    assert found["model"]["train"]["mse"] >= found["least_squares"]["train"]["mse"] * (1 - 1e-12)


def test_hidden_layer_fits_better_than_any_line_and_jit_and_backward_train_alike(capsys, tmp_path):
    valley = train_gender.sample().assign(**{"Gender": "male", "Income (USD)": lambda rows: (rows["Age"] - 40) ** 2})
    valley.loc[:60, "Gender"] = "female"
    options = "--csv", write(tmp_path / "valley.csv", valley.to_csv().encode()), "--hidden=8", "--epochs=400"
    found, eager = (report(capsys, train_gender, *options, *way) for way in ((), ("--eager",)))
    assert found["model"]["train"]["mse"] < 0.2 * found["least_squares"]["train"]["mse"]
    for part in ("train", "test"):
        assert found["model"][part] == pytest.approx(eager["model"][part], rel=1e-6)
    x, (w, b, v, c) = np.ones((7, 3)), [np.full(shape, 0.5) for shape in ((3, 5), 5, (5, 1), 1)]
    np.testing.assert_allclose(train_gender.predict([w, b, v, c], Tensor(x)).data, np.tanh(x @ w + b) @ v + c)


def test_gender_report_is_a_table_of_models_and_five_test_rows(capsys):
    out, _ = printed(capsys, train_gender, "--source", "sample")
    lines = out.splitlines()
    assert lines[:2] == ["source: sample (131 generated rows, not real data)", "rows: 105 for training, 26 for testing"]
    assert [line.split()[-4] for line in lines[-13:-7]] == ["model", "mean", "least_squares"] * 2
    assert (len(lines[-5].split()), lines[-7]) == (5, "Some rows of the test part:")


@pytest.fixture
def kaggle_is_this_machine(tmp_path, monkeypatch):
    """kagglehub talks to localhost:7777, knows no credentials, and keeps its cache in a temporary folder."""
    for name in filter(re.compile("KAGGLE|COLAB|TBE_|(?i:.*PROXY)").match, {*os.environ}):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONUSERBASE", site.getuserbase())  # stays where it was when HOME moves
    for name in ("HOME", "USERPROFILE", "KAGGLE_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")
    with (Path(tempfile.gettempdir()) / "tinygrad_lite_tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other runs of these tests wait for the port
        yield


@contextlib.contextmanager
def kaggle(status=200, version=3, file=b"", archive=b""):
    """The calls that come to Kaggle on localhost: two for a dataset, of which the second leads to a storage."""
    with zipfile.ZipFile(zipped := io.BytesIO(), "w") as members:
        members.writestr("gender.csv", file)
    archive, calls = archive or zipped.getvalue(), []
    known = json.dumps({"ref": train_gender.DATASET, "currentVersionNumber": version}).encode()
    digest = b64encode(hashlib.md5(archive).digest()).decode()
    answers = {
        "GetDataset": (status, {"Content-Type": "application/json"}, known),
        "DownloadDataset": (302 if status == 200 else status, {"Location": "http://localhost:7777/archive.zip"}, b""),
        "archive.zip": (200, {"Accept-Ranges": "bytes", "x-goog-hash": f"md5={digest}"}, archive),
    }

    def answer(environ, start_response):
        call = environ["PATH_INFO"].rpartition("/")[2]
        if environ["REQUEST_METHOD"] == "POST":
            calls.append((call, json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))))
        code, headers, body = answers[call]
        start_response(f"{code} is the status", [*headers.items()])
        return [body]

    quiet = type("Quiet", (WSGIRequestHandler,), {"log_message": lambda *_: None})
    with make_server("127.0.0.1", 7777, answer, handler_class=quiet) as server, contextlib.ExitStack() as at_the_end:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        at_the_end.callback(server.shutdown)  # returns when the thread is done
        yield calls


def kagglehub_that(answers):
    """kagglehub, but it talks, and answers with a statement."""
    talk, names = "print('Downloading'), sys.stderr.write('bar')", {"sys": sys}
    exec(f"def download(_):\n {talk}\n {answers}", names)
    return mock.patch("kagglehub.dataset_download", names["download"])


def gender_source(capsys: Any, *options: object, warning: str = "") -> str:
    """The source that a short run reports, and on standard error one line at most."""
    out, err = printed(capsys, train_gender, *options, "--epochs", 2, "--json")
    assert re.fullmatch(warning, err), err
    return json.loads(out)["source"]


SAMPLE = "sample (131 generated rows, not real data)"
NO_DATA = r"warning: no data from Kaggle \({}\): using the generated sample\n"


@pytest.mark.usefixtures("kaggle_is_this_machine")
@pytest.mark.parametrize("version", [1, 3])
def test_latest_version_comes_from_kaggle_and_where_kaggle_cannot_be_reached_from_the_cache(capsys, version):
    source = f"kaggle ({train_gender.DATASET}, version {version})"
    with kaggle(version=version, file=sample_csv()) as calls:
        assert gender_source(capsys, "--source=kaggle") == source
        assert gender_source(capsys) == source
        done = subprocess.run([sys.executable, HERE / "train_gender.py", "--epochs=2"], capture_output=True, text=True)
        assert (done.returncode, done.stderr, done.stdout.splitlines()[0]) == (0, "", f"source: {source}")
    assert [call for call, _ in calls] == ["GetDataset", "DownloadDataset", "GetDataset", "GetDataset"]
    assert "fileName" not in calls[1][1]
    assert gender_source(capsys) == source
    with kaggle(status=500):
        assert gender_source(capsys, "--source=kaggle") == source


@pytest.mark.usefixtures("kaggle_is_this_machine")
@pytest.mark.parametrize(("kaggle", "answer", "reason"), [
    (contextlib.nullcontext, {}, "ConnectionRefused|Connection refused|Max retries"),
    (kaggle, {"status": 404}, "404"), (kaggle, {"archive": b"<html>please log in</html>\n"}, "Unsupported archive"),
    *[(kaggle, {"file": file}, reason) for file, reason in [
        (b"<html>please log in</html>\n", "gender.csv .*columns"), (b"a,b\n1,2\n", "columns")]],
    *[(kagglehub_that, {"answers": answer}, reason) for answer, reason in [
        ("raise SystemExit('please log in')", "SystemExit: please log in"), ("return None", "TypeError"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"), ("return '/nowhere'", "No such file"),
        ("1 / 0", "ZeroDivisionError")]],
])  # fmt: skip
def test_without_the_table_from_kaggle_auto_takes_the_sample_and_kaggle_is_an_error(capsys, kaggle, answer, reason):
    for _ in range(2):  # what came is not taken from the cache either
        with kaggle(**answer):
            assert gender_source(capsys, warning=NO_DATA.format(f".*({reason}).*")) == SAMPLE
            message = f"({reason}).*--csv FILE or --source sample"
            fails_with_one_sentence(capsys, train_gender, ["--source=kaggle"], message)


def test_a_silent_server_is_given_up_after_15_seconds_and_a_person_sees_the_waiting(tmp_path, kaggle_is_this_machine):
    """On a clock that is ten times as fast."""
    faster = "Thread.join = lambda self, time=None, wait=Thread.join: wait(self, time and time / 10)"
    program = f"import sys, train_gender\nfrom threading import Thread\n{faster}\nsys.exit(train_gender.main())"
    with socket.create_server(("127.0.0.1", 7777)):
        begin = time.monotonic()
        out, shown, code = on_a_terminal("-c", program, "--epochs", 2, "--json")
        assert 1.4 < time.monotonic() - begin < 10
    assert (code, json.loads(out)["source"]) == (0, SAMPLE)
    assert re.search(r"asking Kaggle: +\d+%.*/15 ", shown)
    assert re.search(NO_DATA.format("no answer within 15 s").strip("\\n"), shown)


@pytest.mark.usefixtures("kaggle_is_this_machine")
@both
def test_commands_of_the_readme_run_as_printed_but_for_the_number_of_epochs(capsys, tmp_path, monkeypatch, script):
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    text, name = "\n\n".join([page.read_text() for page in PAGES]), script.__name__
    blocks = re.findall(r"^```sh\n(.*?)\n```", text, re.MULTILINE | re.DOTALL)
    lines = {line for block in blocks for line in block.splitlines()} | {*re.findall(r"`(uv run [^`]*)`", text)}
    # Without uv run and what that takes: this machine has the packages installed.
    commands = [re.sub(r"^(python |(pip install uv && )?uv run( --(with|group) \S+)*)", "", line) for line in lines]
    assert {*re.findall(r"^ *(train_\S*)", "\n".join(commands), re.MULTILINE)} == {f"{s.__name__}.py" for s in TABLES}
    mine = [options for options in map(shlex.split, commands) if options[0] == f"{name}.py"]
    assert len(mine) > 1
    for _, *options in mine:
        printed(capsys, script, *options, "--epochs=1")
    made, kept = [matplotlib.pyplot.imread(where / "docs" / f"{name}.png") for where in (tmp_path, HERE)]
    assert made.shape == kept.shape


def test_commands_of_the_readme_name_the_extras_and_groups_of_the_project():
    named = re.findall(r"uv run --(?:with|group) '?([^' ]+)", "\n".join([page.read_text() for page in PAGES]))
    project = tomllib.loads((HERE / "pyproject.toml").read_text())
    extras = itertools.chain(*project["project"]["optional-dependencies"].values())
    assert {*named} == {re.sub(">=.*", "", name) for name in extras} | {*project["dependency-groups"]} - {"dev"}
