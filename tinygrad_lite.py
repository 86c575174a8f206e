"""Gradients of ordinary NumPy code, in one file.

A ``Tensor`` holds a number (a 0-d array) or an array. Operations on Tensors that require gradients are recorded;
``backward()`` walks the record from the result back to its leaves and adds to each leaf's ``.grad``.

>>> import numpy as np
>>> from tinygrad_lite import SGD, Tensor
>>> x, y = np.array([0.0, 1.0, 2.0]), np.array([-1.0, 0.0, 1.0])
>>> w, b = Tensor(0.0, requires_grad=True), Tensor(0.0, requires_grad=True)
>>> optimizer = SGD([w, b], lr=0.2)
>>> for step in range(100):
...     loss = ((w * x + b - y) ** 2).mean()
...     optimizer.zero_grad()
...     loss.backward()
...     optimizer.step()
>>> print(f"y = {w:.3f} x + {b:.3f}")
y = 1.000 x + -1.000

NumPy's own functions take Tensors, ``np.exp(t)`` or ``np.concatenate([t, u])``, and functions written with them can be
differentiated as they are:

>>> from tinygrad_lite import grad
>>> grad(lambda w: np.linalg.norm(np.tanh(w)))(np.array([0.0, 1.0]))
array([0.        , 0.41997434])

The file in reading order: recording (what an operation leaves behind), Tensor, the table of derivative rules, backward,
gradients of functions, jit, SGD, tools. The table is the heart: a row for each function of NumPy that can be
differentiated, each rule written once, in ordinary NumPy.
"""

from __future__ import annotations

import ast
import collections
import contextlib
import fractions
import functools
import inspect
import itertools
import keyword
import linecache
import math
import operator as op
import sys
import threading
import unicodedata
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

__all__ = ["SGD", "Tensor", "defvjp", "detect_anomaly", "grad", "gradcheck", "hessian", "jacobian", "jit", "jvp"]
__all__ += ["no_grad", "relu", "sigmoid", "to_dot", "value_and_grad"]
__version__ = "0.1.0"


# --- Recording --------------------------------------------------------------------------------------------------------
# An operation on Tensors runs on their plain values and leaves a Node behind: which function ran, on what, and whose
# gradients it can pass on. Nodes point to their parents, never back, so that a graph is freed with its last Tensor.
# (A Tensor, the class of the next section, is a value and its node, or None for a constant.)


_new, _float64, _ndarray = object.__new__, np.float64, np.ndarray  # looked up once, as every operation needs them
_next_order = itertools.count(0, -1).__next__
_LARGE = 10_000  # elements: below that, an array is not worth forgetting


def _check(ok, message, error=ValueError):
    if not ok:
        raise error(message)


class _UntraceableError(TypeError):
    """Of what ``jit`` cannot follow, as each call brings other values; it comes even if the function catches it."""

    def __init__(self, message):
        super().__init__(message)
        if _thread.trace:
            _thread.trace.refused = self


def _check_untraced(what):
    """Refuse what would happen while ``jit`` traces, and in no later call."""
    if _traces and _thread.trace:
        raise _UntraceableError(f"{what} would happen only once under jit(): do it outside")


class _Unread:
    """What is kept of a large array that no rule will read."""

    __slots__ = ("dtype", "ndim", "shape", "size")

    def __init__(self, x):
        self.dtype, self.ndim, self.shape, self.size = x.dtype, x.ndim, x.shape, x.size

    def __getattr__(self, name):
        raise AttributeError(f"a VJP reads .{name} of a parameter whose name says, by its underscore, that it does not")


class _Leaf:
    """The node of a Tensor that was not computed: where its gradient comes together."""

    __slots__ = ("grad", "order")
    row, parents, values, options = None, (), (), None

    def __init__(self):
        self.order, self.grad = _next_order(), None


class _Node:
    """What one operation leaves behind for ``backward``.

    The values are those that the operation saw: what an optimizer does to a leaf later changes none of them.
    """

    __slots__ = ("options", "order", "out", "parents", "row", "values")

    def __init__(self, row, parents, values, out, options=None):
        self.order = _next_order()  # the newest node has the smallest number, so that a heap gives it first
        self.row, self.options = row, options
        self.parents = parents  # the nodes of the arguments, None for an argument that requires no gradient
        self.values, self.out = values, out
        x = values[0]  # of an operation's arrays this and the result say enough about their size
        if (x.__class__ is _ndarray and x.size >= _LARGE) or (out.__class__ is _ndarray and out.size >= _LARGE):
            self.forget()

    def forget(self):
        """Keep of the arrays that the rules will not read no more than shape and dtype."""
        kept = self.row.kept(tuple([parent is not None for parent in self.parents]))
        self.out, *self.values = [
            x if keep or x.__class__ is not _ndarray else _Unread(x)
            for x, keep in zip((self.out, *self.values), kept, strict=True)
        ]


def _reads(vjp):
    """Whether a VJP reads the result, and each of the arguments: where no underscore is in front of the name."""
    try:
        parameters = inspect.signature(vjp).parameters.values()
    except ValueError:  # of a function in C that does not tell its parameters
        return [True]
    return [p.name[0] != "_" for p in parameters if p.kind < p.KEYWORD_ONLY][1:] or [True]


class _Row:
    """A row of the table: a function and one way to differentiate it.

    A rule has ``vjps`` (vector-Jacobian products, see the table), one per positional argument; a re-expression has
    ``expression``, the same function said in other functions of the table; a constant has neither, and its result
    carries no gradient. What joins any number of arrays has both (see ``_variadic``). ``compute`` is the quickest way
    to the value of a rule. ``arity`` is the number of arguments that need no look if they come without options;
    ``ways`` are the other ways to call that need none. ``elastic`` is said below, in the section on backward.
    """

    __slots__ = ("_kept", "arity", "compute", "elastic", "expression", "function", "vjps", "ways")

    def __init__(self, function, vjps=()):
        self.function = function
        self.define(vjps)

    def define(self, vjps=(), expression=None):
        self.vjps: Sequence[Callable | None] = vjps if any(vjps) else ()
        self.expression: Callable | None = expression
        self.compute: Callable = self.function
        self.arity, self.ways = len(vjps) if all(vjps) and not expression else -1, set()
        self.elastic = False
        self._kept: dict = {}

    def kept(self, required):
        """Whether the VJPs of those arguments that require gradients read the result, and each of the arguments."""
        if required not in self._kept:
            reads = [_reads(vjp) for vjp, needed in zip(self.vjps, required, strict=False) if needed]
            self._kept[required] = [any(r[min(i, len(r) - 1)] for r in reads) for i in range(len(required) + 1)]
        return self._kept[required]

    def arrange(self, args, options):
        """A call as the rules take it: by position as far as can be, and without options that say NumPy's default.

        Refuses what no rule here would see: options that NumPy has and the rule has not.
        """
        way, call = (len(args), *options), options
        if way not in self.ways:
            rule, before = (self.expression, ()) if self.expression else (next(filter(None, self.vjps)), ("g", "out"))
            known, arrays = inspect.signature(rule), 0 if self.expression else len(self.vjps)
            with contextlib.suppress(ValueError):  # of functions in C that do not tell their parameters
                bound = inspect.signature(self.function).bind(*args, **options)
                had = [(name, x, bound.signature.parameters[name].default) for name, x in bound.arguments.items()]
                own = math.inf if inspect.isfunction(self.function) else arrays  # of a function not NumPy's, all stay
                call = {n: x for i, (n, x, d) in enumerate(had) if i < own or (x is not d and (type(x), x) != (str, d))}
                named = {*options} & {*call} & {*[*known.parameters][len(before) + arrays :]}
                bound.arguments = {name: x for name, x in call.items() if name not in named}
                args, options = bound.args, bound.kwargs | {name: call[name] for name in named}
            try:
                known.bind(*before, *args, **options)
            except TypeError as error:
                extra = {*[*call][arrays:], *options} - {*[*known.parameters][len(before) :], "kwargs"}
                what = f"takes no {' and no '.join(sorted(extra))}: leave it out" if extra else f"failed: {error}"
                raise TypeError(f"{_name(self.function)} of a Tensor that requires gradients {what}") from None
            self.ways |= {way} & {(len(args), *options)}  # if all stayed as it was
        return args, options

    def refuse(self, nodes):
        """An error for arguments that require gradients and have no VJP."""
        for i, node in enumerate(nodes):
            if node is not None and (i >= len(self.vjps) or self.vjps[i] is None):
                raise TypeError(f"{_name(self.function)} has no derivative rule for argument {i}: detach() that one")


_table: dict[Callable, _Row] = {}


class _Thread(threading.local):
    recorder: type[_Node] = _Node  # what a recorded operation leaves behind
    recording: type[_Node] | None = _Node  # the same, or None where nothing is recorded
    trace: _Trace | None = None  # of a function under jit


_thread = _Thread()
_traces: list[_Trace | None] = []  # of all threads, and None for each detect_anomaly


def _read(x, arrays=False):
    """x, but under ``jit`` for a Tensor from outside, or an array, what stands for its value at the time of a call."""
    trace = _thread.trace
    if trace and ((arrays and type(x) is _ndarray) or (isinstance(x, Tensor) and not isinstance(x._value, _Traced))):
        return trace.captured(x)
    return x


@contextlib.contextmanager
def _recording(on: bool) -> Iterator[None]:
    before, _thread.recording = _thread.recording, _thread.recorder if on else None
    try:
        yield
    finally:
        _thread.recording = before


def no_grad() -> contextlib.AbstractContextManager[None]:
    """Record nothing within: a context manager, or a decorator when called (``@no_grad()``); per thread.

    It is not for generator functions: around a ``yield`` it would hold for the caller too.

    >>> w = Tensor(3.0, requires_grad=True)
    >>> with no_grad():
    ...     print((w * 2).requires_grad)
    False
    """
    return _recording(False)


def _name(function):
    function = getattr(function, "func", function)  # of a partial function
    name = getattr(function, "__name__", repr(function)).lstrip("_")
    module = getattr(function, "__module__", None) or "numpy" * hasattr(np, name)  # which ufuncs do not tell
    return f"{module}.{name}".lstrip(".").replace("numpy.", "np.", 1)


def _as_value(data):
    """What a Tensor holds: an array or NumPy scalar of booleans, integers or floats.

    Arrays of other kinds are kept as they are if they answer NumPy's protocols.
    """
    if isinstance(data, Tensor):
        return data._constant("the data of another Tensor", "t for Tensor(t)")
    is_array = hasattr(type(data), "__array_function__") and hasattr(type(data), "__array_ufunc__")
    # Only a subclass is asked, because NumPy imports its ma when somebody names it.
    if isinstance(data, np.ndarray) and type(data) is not np.ndarray and isinstance(data, np.ma.MaskedArray):
        raise TypeError("a Tensor of a masked array would lose the mask: fill it first, with data.filled(value)")
    value = data if is_array and not isinstance(data, np.ndarray) else np.asarray(data)
    if value.dtype.kind not in "biuf":
        advice = "take its real part" if value.dtype.kind == "c" else "convert it first, with data.astype(float) say"
        what = f"data of dtype {value.dtype}: {advice}" if data is not None else "None: does a function lack a return?"
        raise TypeError(f"a Tensor holds booleans, integers or floats, not {what}")
    return value if is_array or value.ndim else value[()]


def _as_array(value):
    """A value that has a shape and a dtype: a Python float, which has none, becomes a NumPy scalar."""
    if value.__class__ is float:
        return _float64(value)
    is_traced = _traces and isinstance(value, _Traced) and value.example.__class__ is float
    return value.trace.call(_float64, (value,), {}) if is_traced else value


def _as_tensor(x):
    """A Tensor as it is, anything else as one: a Python float without a dtype yet."""
    return _read(x if isinstance(x, Tensor) else _wrap(x if x.__class__ is float else _as_value(x), None))


def _as_operand(data):
    """What arithmetic takes: Python's numbers as they are, arrays and lists; else NotImplemented, as Python expects."""
    if isinstance(data, (int, float)) or (data.__class__ is _ndarray and data.dtype.kind in "biuf"):
        return data
    return _as_value(data) if hasattr(data, "__array__") or isinstance(data, (complex, list, tuple)) else NotImplemented


def _wrap(value, node):
    """A Tensor from within: of a value that is known to be one, and its node or None."""
    tensor = _new(Tensor)
    tensor._value = value
    tensor._node = node
    return tensor


# The classes of operands and of arguments that need no look before NumPy gets them.
_python = {bool, int, float}
_numbers = {np.float64, np.float32, *_python}
_quick = {np.ndarray, np.float64, np.float32, int}


def _items(tree):
    """The keys and items of a tuple, list or dict."""
    return tree.items() if isinstance(tree, dict) else enumerate(tree)


def _rebuilt(tree, items):
    """A tuple, list or dict like this one, with these items."""
    if isinstance(tree, dict):
        return tree | dict(zip(tree, items, strict=True))  # an OrderedDict and the like stays one
    return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)


def _map(function, tree):
    """The function of every leaf of nested tuples, lists and dicts, in the same structure."""
    if not isinstance(tree, (tuple, list, dict)):
        return function(tree)
    return _rebuilt(tree, [_map(function, item) for item in (tree.values() if isinstance(tree, dict) else tree)])


def _leaves(tree):
    """The leaves of nested tuples, lists and dicts, in a list."""
    if not isinstance(tree, (tuple, list, dict)):
        return [tree]
    return [leaf for item in (tree.values() if isinstance(tree, dict) else tree) for leaf in _leaves(item)]


def _unwrapped(x):
    """The value of a Tensor, and of a pandas object; other things as they are."""
    return _read(x)._value if isinstance(x, Tensor) else _as_value(x) if hasattr(x, "to_numpy") else x


def _is_foreign(x):
    """Whether x is an array of another library, lazy perhaps or on other machines."""
    return hasattr(x, "__array_function__") and not isinstance(x, (np.ndarray, Tensor, _Traced))


def _check_local(function, *trees):
    """Refuse arrays of another library where NumPy would fetch them to this machine, without a word."""
    here = not any(_is_foreign(_unwrapped(x)) for x in _leaves(trees))
    _check(here, f"{_name(function)} would need the elements of an array of another library on this machine", TypeError)


_lock = threading.RLock()  # for what threads have in common: the filters of warnings, the table, the leaves


def _shapes(values):
    """The shapes of the arrays among some values, in words."""
    return " and ".join([str(x.shape) for x in values if isinstance(getattr(x, "shape", None), tuple)])


def _explain(error, function, values):
    """Raise a ValueError with the operation and the shapes that it met, but none of the user's own errors."""
    if type(error).__module__.split(".")[0] in ("builtins", "numpy"):
        raise type(error)(f"{_name(function)} of shapes {_shapes(values)}: {str(error).strip()}") from None


def _compute(function, compute, values, options, foreign=False):
    """Call ``compute``, NumPy's function or the like."""
    try:
        if not foreign:
            return compute(*values, **options)
        with _lock, warnings.catch_warnings(action="error", category=FutureWarning):
            return compute(*values, **options)
    except FutureWarning as warning:  # of another library, before it gives all it has to NumPy
        raise TypeError(f"{_name(function)} would fetch whole arrays to this machine: {warning}") from None
    except ValueError as error:
        _explain(error, function, values)
        raise


def _apply(function, args, options):
    """Call a function of the table on the values of its arguments, and record the call if one requires gradients.

    Every operation passes through here, but for the operators of two operands (``_operator``) and what joins any number
    of arrays (``_variadic``).
    """
    if _traces:
        args, options = _map(_read, (args, options))
        if isinstance(function, np.ufunc) or function is np.where:
            args = tuple([_read(x, arrays=True) for x in args])
        if function in _symbols and all(type(getattr(_unwrapped(x), "example", x)) in _python for x in args):
            # Of Python's numbers alone a function makes one of NumPy's, as operators do not.
            args = tuple([_wrap(_as_array(x._value), x._node) if isinstance(x, Tensor) else x for x in args])
    row = _table.get(function)
    if row is None:
        name, advice = _name(function), "call it outside jit()" if _thread.trace else "give it t.data"
        raise TypeError(f"{name} has no derivative rule: add one with defvjp({name}, ...), or {advice}")
    if options or len(args) != row.arity:
        return _apply_with_care(row, args, options)
    values, nodes = [], []
    for x in args:
        node = None
        if isinstance(x, Tensor):
            node, x = x._node, x._value
        if x.__class__ not in _quick or (x.__class__ is _ndarray and x.dtype.kind not in "biuf"):
            return _apply_with_care(row, args, options)
        values.append(x)
        nodes.append(node)
    try:
        out = row.compute(*values)
    except ValueError as error:
        _explain(error, function, values)
        raise
    return _record(row, nodes, values, out, options)


def _apply_with_care(row, args, options):
    """The same for arguments of all kinds."""
    if isinstance(row.function, np.ufunc):
        args = [x if isinstance(x, (Tensor, int, float)) else _as_value(x) for x in args]
    function, leaves = row.function, _leaves((args, options))
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    recorded = _thread.recording and any(t._node for t in tensors) and (row.vjps or row.expression)
    foreign = any(_is_foreign(_unwrapped(x)) for x in leaves)
    if recorded or (foreign and row.expression):
        args, options = row.arrange(args, options)
    if row.expression and (recorded or (foreign and not isinstance(function, np.ufunc))):  # ufuncs every library has
        return row.expression(*args, **options)
    nodes = [x._node if isinstance(x, Tensor) else None for x in args]
    if recorded:
        row.refuse(nodes)
        if len(tensors) > sum([isinstance(x, Tensor) for x in args]):
            raise TypeError(f"{_name(function)} takes Tensors by position, not by keyword or in a list")
    values, options = _map(_unwrapped, (args, options))
    out = _compute(function, row.compute, values, options, foreign)
    if not recorded:
        return _map(lambda x: _wrap(_as_value(x), None) if hasattr(x, "dtype") else x, out)
    values = [_as_array(x) if isinstance(arg, Tensor) else x for x, arg in zip(values, args, strict=True)]
    return _record(row, nodes, values, out, options)


def _record(row, nodes, values, out, options):
    """The Tensor of a result, with a node if an argument has one."""
    if out.__class__ is not float and out.__class__ is not _float64:
        if out.__class__ is not _ndarray and (isinstance(out, Tensor) or not hasattr(out, "dtype")):
            raise TypeError(f"{_name(row.function)} gave a {type(out).__name__}: it must make one array out of arrays")
        if out.dtype.kind != "f":
            return _wrap(_as_value(out), None)
    recorder = _thread.recording
    return _wrap(out, recorder(row, nodes, values, out, options) if recorder and any(nodes) else None)


def _operator(function, compute) -> tuple[Callable[[Any, Any], Tensor], Callable[[Any, Any], Tensor]]:
    """The two methods ``x op y`` and ``y op x`` of Tensor: ``_apply`` for a rule of two operands, without its loops.

    Python's own operator computes the value: on NumPy scalars it is many times faster than the ufunc.
    """
    row = _table.setdefault(function, _Row(function))

    def forward(x, y):
        if _traces:
            x, y = _read(x, arrays=True), _read(y, arrays=True)
        of_x = of_y = None
        if isinstance(x, Tensor):
            of_x, x = x._node, x._value
        elif x.__class__ not in _numbers and (x := _as_operand(x)) is NotImplemented:
            return NotImplemented
        if isinstance(y, Tensor):
            of_y, y = y._node, y._value
        elif y.__class__ not in _numbers and (y := _as_operand(y)) is NotImplemented:
            return NotImplemented
        weak = x.__class__ in _python and y.__class__ in _python  # NumPy's arithmetic, but the result has no dtype yet
        try:
            out = compute(_float64(x) if weak else x, y)
        except ValueError as error:
            _explain(error, function, (x, y))
            raise
        if weak and out.__class__ is _float64:
            out = float(out)
        recorder = _thread.recording
        if (of_x is of_y is None) or not recorder:
            return _wrap(out, None)
        if row.arity != 2:
            if not row.vjps:
                return _wrap(out, None)
            row.refuse((of_x, of_y))
        return _wrap(out, recorder(row, (of_x, of_y), (x, y), out))

    def reflected(y, x):
        return forward(x, y)

    for method in (forward, reflected):
        method.__name__, method.__doc__ = function.__name__, f"``{_name(function)}`` of two operands, which broadcast."
    return forward, reflected


def _example(what, call, result):
    """A docstring: what it is, and an example, for documentation and tests alike."""
    return f"{what}\n\n>>> t = Tensor([[1.0, 4.0], [9.0, 16.0]])\n>>> {call}\n{result}\n"


def _method(function, call, result) -> Callable[..., Tensor]:
    """A function of the table as a method of Tensor."""

    def method(self, *args, **options):
        return _apply(function, (self, *args), options)

    method.__name__ = function.__name__.lstrip("_")
    what = f"``{_name(function)}`` of this Tensor, with the arguments that follow the array there."
    method.__doc__ = _example(f"{what} Not all go with gradients: an error says which.", call, result)
    return method


def _attribute(name, what, result) -> property:
    """What NumPy tells of an array, as a property of Tensor."""
    return property(lambda self: getattr(_as_array(self._value), name), doc=_example(what, f"t.{name}", result))


def _relu(x):
    """max(x, 0) of each element, in its dtype, with a gradient of 0 at 0.

    >>> relu(Tensor([-1.0, 2.0]))
    Tensor([0., 2.])
    """
    return np.maximum(x, 0)


def _sigmoid(x):
    """1 / (1 + exp(-x)) of each element, the logistic function, without overflow.

    >>> sigmoid(Tensor([-1000.0, 0.0]))
    Tensor([0. , 0.5])
    """
    small = np.exp(np.abs(x) * -1.0)
    return np.where(np.less(x, 0), small, 1) / (1 + small)


def _astype(x, dtype):
    return _as_array(x).astype(dtype)


# --- Tensor -----------------------------------------------------------------------------------------------------------
# Numbers and arrays alike. A number is kept as a NumPy scalar, with which arithmetic is fast, until somebody looks at
# ``.data``: from then on it is the 0-d array that was handed out, so that a change in place is seen.


class Tensor:
    """A number or an array that remembers how it was computed.

    Parameters
    ----------
    data : a number, nested lists, a NumPy scalar or array, a pandas Series or DataFrame, or any array that answers
        NumPy's protocols ``__array_ufunc__`` and ``__array_function__``. Arrays are not copied.
    requires_grad : whether ``backward`` shall bring gradients here; for floating dtypes only.
    dtype : the dtype to convert to; by default the data's own, which is float64 for Python's floats.

    Raises
    ------
    TypeError : for data that are not real numbers or booleans, or that cannot have gradients but should.

    >>> t = Tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    >>> (t * t).sum().backward()
    >>> t.grad
    array([[2., 4.],
           [6., 8.]])
    """

    __slots__ = ("__weakref__", "_leaf", "_node", "_value")
    __hash__ = object.__hash__
    __array_priority__ = __pandas_priority__ = 5000  # array * Tensor and Series * Tensor are the Tensor's business

    def __init__(self, data: Any, requires_grad: bool = False, dtype: Any = None):
        self._value = _as_value(data if dtype is None else _as_value(data).astype(dtype, copy=False))
        self._node: Any = None  # a _Node or, of a leaf, its _Leaf; None for a constant
        self._leaf: Any = None  # of a leaf the same, also while requires_grad is switched off
        self.requires_grad = requires_grad

    @property
    def data(self) -> Any:
        """The array, for a number a 0-d array. May be replaced by one of the same shape, and is then cast to ``dtype``.

        Writing into it, or into any array that an operation read, before ``backward`` spoils the gradients, and nothing
        notices. ValueError for another shape, TypeError for a dtype of another kind.

        >>> t = Tensor([1.0, 2.0])
        >>> t.data = [3, 4]
        >>> t.data
        array([3., 4.])
        """
        _check_untraced("reading .data")
        if isinstance(self._value, np.generic):
            self._value = np.asarray(self._value)
        return self._value if self._value.__class__ is not float else np.asarray(self._value)

    @data.setter
    def data(self, data: Any) -> None:
        _check_untraced("setting .data")
        value, shape = _as_value(data), self.shape
        _check(value.shape == shape, f".data of shape {shape} cannot become shape {value.shape}: make a new Tensor")
        self._value = value.astype(self.dtype, casting="same_kind", copy=False)

    @property
    def requires_grad(self) -> bool:
        """Whether ``backward`` from here reaches a leaf. May be switched on leaves; while off, ``.grad`` is None.

        >>> w = Tensor(1.0, requires_grad=True)
        >>> (w + 1).requires_grad, w.detach().requires_grad
        (True, False)
        """
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, required: bool) -> None:
        _check(self._node is None or self._node.row is None, "requires_grad of a result cannot be set: .detach() it")
        if required:
            what = f"{self.dtype} data cannot require gradients: give floats, with 3.0, .astype(float) or dtype=float"
            _check(self.dtype.kind == "f", what, TypeError)
            self._leaf = getattr(self, "_leaf", None) or _Leaf()
        self._node = self._leaf if required else None

    @property
    def grad(self) -> Any:
        """The sum of the gradients that ``backward`` brought here: an array like ``.data``, or None. Leaves only.

        The array is the Tensor's own. After ``backward(create_graph=True)`` it is a Tensor. May be set, to None say;
        ValueError for another shape, and on results.

        >>> w = Tensor([1.0, 2.0], requires_grad=True)
        >>> (w * w).sum().backward()
        >>> w.grad
        array([2., 4.])
        """
        _check_untraced("reading .grad")
        leaf = self._node
        if leaf is None or leaf.row:
            return None
        if isinstance(leaf.grad, np.generic):
            leaf.grad = np.asarray(leaf.grad)
        return leaf.grad

    @grad.setter
    def grad(self, gradient: Any) -> None:
        _check_untraced("setting .grad")
        leaf = getattr(self, "_leaf", None)
        if gradient is not None:
            _check(self._node and self._node is leaf, ".grad can be set on leaves that require gradients only")
            gradient = gradient if isinstance(gradient, Tensor) and gradient.requires_grad else _as_value(gradient)
            gradient, shape = gradient.astype(self.dtype), self.shape
            _check(gradient.shape == shape, f".grad of a Tensor of shape {shape} cannot have shape {gradient.shape}")
        if leaf is not None:
            leaf.grad = gradient

    shape = _attribute("shape", "The lengths of the axes, () for a number.", "(2, 2)")
    ndim = _attribute("ndim", "The number of axes, 0 for a number.", "2")
    size = _attribute("size", "The number of elements, 1 for a number.", "4")
    dtype = _attribute("dtype", "NumPy's dtype of the elements.", "dtype('float64')")

    @property
    def T(self) -> Tensor:
        """The Tensor with its axes in reversed order.

        >>> Tensor([[1.0, 2.0, 3.0]]).T.shape
        (3, 1)
        """
        return self.transpose()

    def backward(self, gradient: Any = None, create_graph: bool = False) -> None:
        """Add d(self)/d(leaf) to the ``.grad`` of every leaf that this Tensor was computed from.

        Parameters
        ----------
        gradient : an array of this Tensor's shape, the gradient of some number with respect to this Tensor; by
            default 1, for a Tensor of one element.
        create_graph : record the computation of the gradients too; ``.grad`` becomes a Tensor to differentiate again,
            and keeps its leaf alive with it, in a cycle that ends with ``grad = None``.

        Raises
        ------
        ValueError : if the Tensor requires no gradient, or has several elements and no ``gradient`` of its shape.

        >>> x = Tensor([1.0, 2.0], requires_grad=True)
        >>> (x**3).backward([1.0, 10.0])
        >>> x.grad
        array([  3., 120.])
        """
        _check_untraced("backward() (for which there are grad() and value_and_grad())")
        value = _as_array(self._value)
        if self._node is None:
            raise ValueError("backward() on a Tensor that requires no gradient: make a leaf with requires_grad=True")
        if create_graph and not _thread.recording:
            with _recording(True):
                self.backward(gradient, create_graph)
            return
        if gradient is not None:
            gradient = gradient if isinstance(gradient, Tensor) and create_graph else _as_value(gradient)
            _check(gradient.shape == value.shape, f"backward() of shape {value.shape} got {gradient.shape}")
            gradient = gradient.astype(value.dtype)
        elif value.size == 1:
            gradient = _one(value)
        else:
            raise ValueError(f"backward() of shape {value.shape} needs a gradient: .sum() it first, or give one")
        gradients = _backward({self._node: gradient}, create_graph)
        with _lock:  # only now, so that an error on the way leaves every gradient as it was
            while gradients:
                leaf, g, references = _taken(gradients)
                is_own = g.__class__ is _ndarray and g.base is None and g.flags.writeable and references == _unshared
                leaf.grad = leaf.grad + g if leaf.grad is not None else g if is_own else +g  # + makes a copy

    def detach(self) -> Tensor:
        """A Tensor of the same data, without copying, that requires no gradient.

        >>> w = Tensor(2.0, requires_grad=True)
        >>> (w * w.detach()).backward()
        >>> w.grad
        array(2.)
        """
        value = _unwrapped(self)
        return _wrap(value if isinstance(value, (float, _Traced)) else self.data, None)

    def item(self) -> Any:
        """The one element, as a Python number; ValueError if there are more.

        >>> Tensor([[2.5]]).item()
        2.5
        """
        return np.asarray(_unwrapped(self)).item()

    # Python's and NumPy's protocols. What would lose a gradient without a word is an error that says what to do.

    def __len__(self) -> int:
        return len(self._value if _traces else self.data)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> Tensor:
        _check_local(op.getitem, () if _is_foreign(self._value) else index)
        return _apply(op.getitem, (self, _map(_unwrapped, index)), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError("a Tensor cannot be written to: make a new one with np.where, np.concatenate or np.stack")

    def __bool__(self) -> bool:
        return bool(_unwrapped(self))

    def __float__(self) -> float:
        return float(self._constant("a Python number"))

    def __int__(self) -> int:
        return int(self._constant("a Python number"))

    def __index__(self) -> int:
        return op.index(_unwrapped(self))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        value = self._constant("a NumPy array")
        return np.array(value, dtype) if copy else np.asarray(value, dtype)

    def _constant(self, what, instead=""):
        value = _unwrapped(self)
        if self._node is not None and not isinstance(value, _Traced):
            what = f"a Tensor that requires gradients would lose them as {what}"
            instead = instead or "np.stack([...]) for np.array([...]), X @ t for X.dot(t), Tensor(df) @ t for df @ t"
            raise TypeError(f"{what}: write .item() or .detach() to do without, np. functions for math's, {instead}")
        return value

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if method != "__call__" or options:
            call = f"{_name(ufunc)}.{method}".removesuffix(".__call__") + "".join([f" with {o}=" for o in options])
            raise TypeError(f"{call} does not take Tensors: write np.sum, np.where, .astype or y = np.add(x, 1) say")
        return _apply(ufunc, inputs, {})

    def __array_function__(self, function, types, args, options):
        return _apply(function, args, options)

    def __repr__(self) -> str:
        x = np.asarray(self._value) if isinstance(self._value, (np.generic, float)) else self._value
        text = np.array2string(x, separator=", ", prefix="Tensor(") if isinstance(x, np.ndarray) else repr(x)
        dtype = "" if self.dtype in (float, int, bool) else f", dtype={self.dtype}"
        return f"Tensor({text}{dtype}{', requires_grad=True' if self.requires_grad else ''})"

    def __format__(self, spec: str) -> str:
        return super().__format__(spec) if self.ndim else format(self.item(), spec)

    def __reduce__(self):
        is_leaf = self._node is None or self._node.row is None
        _check(is_leaf, "a computed Tensor cannot be copied or pickled with its graph: use .detach()", TypeError)
        return type(self), (self.data, self.requires_grad), (None, {"grad": _unwrapped(self.grad)})

    # Operators and methods, each a function of the table.

    (__add__, __radd__), (__sub__, __rsub__) = _operator(np.add, op.add), _operator(np.subtract, op.sub)
    (__mul__, __rmul__), (__pow__, __rpow__) = _operator(np.multiply, op.mul), _operator(np.power, op.pow)
    __matmul__, __rmatmul__ = _operator(np.matmul, np.matmul)
    (__truediv__, __rtruediv__), (__mod__, __rmod__) = _operator(np.divide, op.truediv), _operator(np.mod, op.mod)
    __floordiv__, __rfloordiv__ = _operator(np.floor_divide, op.floordiv)
    (__eq__, _), (__ne__, _) = _operator(np.equal, op.eq), _operator(np.not_equal, op.ne)  # type: ignore
    (__lt__, _), (__le__, _) = _operator(np.less, op.lt), _operator(np.less_equal, op.le)
    (__gt__, _), (__ge__, _) = _operator(np.greater, op.gt), _operator(np.greater_equal, op.ge)
    (__and__, __rand__), (__or__, __ror__) = _operator(np.bitwise_and, op.and_), _operator(np.bitwise_or, op.or_)
    __xor__, __rxor__ = _operator(np.bitwise_xor, op.xor)

    # fmt: off
    __neg__    = _method(np.negative,  "(-t)[0]",                       "Tensor([-1., -4.])")
    __pos__    = _method(np.positive,  "(+t)[0]",                       "Tensor([1., 4.])")
    __abs__    = _method(np.absolute,  "abs(-t)[0]",                    "Tensor([1., 4.])")
    __invert__ = _method(np.invert,    "~(t > 5)[0]",                   "Tensor([ True,  True])")

    sum        = _method(np.sum,       "t.sum(axis=0)",                 "Tensor([10., 20.])")
    mean       = _method(np.mean,      "t.mean(axis=1)",                "Tensor([ 2.5, 12.5])")
    max        = _method(np.max,       "t.max()",                       "Tensor(16.)")
    min        = _method(np.min,       "t.min(axis=0)",                 "Tensor([1., 4.])")
    prod       = _method(np.prod,      "t.prod()",                      "Tensor(576.)")
    var        = _method(np.var,       "t.var(axis=0)",                 "Tensor([16., 36.])")
    std        = _method(np.std,       "t.std(axis=0)",                 "Tensor([4., 6.])")
    any        = _method(np.any,       "(t > 5).any(axis=1)",           "Tensor([False,  True])")
    all        = _method(np.all,       "(t > 5).all()",                 "Tensor(False)")
    argmax     = _method(np.argmax,    "t.argmax()",                    "Tensor(3)")
    argmin     = _method(np.argmin,    "t.argmin(axis=0)",              "Tensor([0, 0])")
    argsort    = _method(np.argsort,   "(-t).argsort(axis=1)[0]",       "Tensor([1, 0])")
    cumsum     = _method(np.cumsum,    "t.cumsum()",                    "Tensor([ 1.,  5., 14., 30.])")
    cumprod    = _method(np.cumprod,   "t.cumprod()",                   "Tensor([  1.,   4.,  36., 576.])")
    diagonal   = _method(np.diagonal,  "t.diagonal()",                  "Tensor([ 1., 16.])")
    trace      = _method(np.trace,     "t.trace()",                     "Tensor(17.)")
    dot        = _method(np.dot,       "t.dot([1.0, 0.5])",             "Tensor([ 3., 17.])")

    abs        = _method(np.absolute,  "(-t).abs()[0]",                 "Tensor([1., 4.])")
    exp        = _method(np.exp,       "t.exp()[0].round(2)",           "Tensor([ 2.72, 54.6 ])")
    log        = _method(np.log,       "t.log()[0].round(2)",           "Tensor([0.  , 1.39])")
    sqrt       = _method(np.sqrt,      "t.sqrt()[0]",                   "Tensor([1., 2.])")
    sin        = _method(np.sin,       "t.sin()[0].round(2)",           "Tensor([ 0.84, -0.76])")
    cos        = _method(np.cos,       "t.cos()[0].round(2)",           "Tensor([ 0.54, -0.65])")
    tan        = _method(np.tan,       "t.tan()[0].round(2)",           "Tensor([1.56, 1.16])")
    tanh       = _method(np.tanh,      "t.tanh()[0].round(2)",          "Tensor([0.76, 1.  ])")
    relu       = _method(_relu,        "(4 - t).relu()[0]",             "Tensor([3., 0.])")
    sigmoid    = _method(_sigmoid,     "(t - 4).sigmoid()[0].round(2)", "Tensor([0.05, 0.5 ])")
    round      = _method(np.round,     "(t / 3).round(1)[0]",           "Tensor([0.3, 1.3])")

    ravel      = _method(np.ravel,     "t.ravel()",                     "Tensor([ 1.,  4.,  9., 16.])")
    squeeze    = _method(np.squeeze,   "t[:1].squeeze()",               "Tensor([1., 4.])")
    swapaxes   = _method(np.swapaxes,  "t.swapaxes(0, 1)[0]",           "Tensor([1., 9.])")
    copy       = _method(np.copy,      "t.copy()[0]",                   "Tensor([1., 4.])")
    # fmt: on

    def astype(self, dtype: Any) -> Tensor:
        """The elements in another dtype; of floats to floats, gradients pass, in the dtype of the leaf again.

        >>> Tensor([1.0, 2.5]).astype(np.float32)
        Tensor([1. , 2.5], dtype=float32)
        """
        return _apply(_astype, (self, dtype), {})

    def clip(self, min: Any = None, max: Any = None) -> Tensor:
        """The values limited to [min, max]; None is no limit.

        >>> Tensor([-1.0, 2.0]).clip(0, 1)
        Tensor([0., 1.])
        """
        return _apply(np.clip, (self, min, max), {})

    def reshape(self, *shape: Any) -> Tensor:
        """``t.reshape(2, -1)`` or ``t.reshape((2, -1))``: the same elements in another shape.

        >>> Tensor([1.0, 2.0]).reshape(2, -1).shape
        (2, 1)
        """
        return _apply(np.reshape, (self, shape[0] if len(shape) == 1 and np.ndim(shape[0]) else shape), {})

    def transpose(self, *axes: Any) -> Tensor:
        """``t.transpose()`` reverses the axes, ``t.transpose(1, 0)`` or ``t.transpose((1, 0))`` orders them.

        >>> Tensor(np.zeros((2, 3, 4))).transpose(2, 0, 1).shape
        (4, 2, 3)
        """
        return _apply(np.transpose, (self, axes[0] if len(axes) == 1 else axes or None), {})


# --- The table of derivative rules ------------------------------------------------------------------------------------
# A rule has one vector-Jacobian product (VJP) per argument: from g, the gradient of some number with respect to the
# result, it makes the gradient with respect to that argument. What broadcasting stretched, backward sums down again.
# Handed Tensors instead of arrays, a rule records a graph of its own: so second derivatives come.


def defvjp(function: Callable, *vjps: Callable | None) -> Callable:
    """Add a derivative rule to the table, or replace one.

    Parameters
    ----------
    function : a NumPy function, any ufunc, or a plain Python function of arrays.
    vjps : for each positional argument ``vjp(g, out, *arguments, **options)``, or None where there is no derivative.
        ``g`` and ``out``, the result, have the same shape; the VJP may return the shape that broadcasting gave its
        argument. Each declares the options of the function, with its defaults. A parameter whose name begins with an
        underscore must not be read but for its shape, ndim, size and dtype: of arrays of 10,000 elements and more
        nothing else is kept, which saves memory. None alone says that the result is a constant. Graphs that were
        recorded before a rule is replaced may need the old one.

    Returns
    -------
    The function to call: ``function`` itself where NumPy lets Tensors override it, else one that records.

    Raises
    ------
    TypeError : for what is no function. ``backward`` raises it, or a ValueError for the shape, of what a VJP returns.

    >>> cube = defvjp(lambda x: x * x * x, lambda g, out, x: g * 3 * x**2)
    >>> x = Tensor(2.0, requires_grad=True)
    >>> cube(x).backward()
    >>> x.grad
    array(12.)
    """
    fits = callable(function) and vjps and all(vjp is None or callable(vjp) for vjp in vjps)
    _check(fits, f"defvjp takes a function and rules, not {function!r} and {vjps}", TypeError)
    _table.setdefault(function, _Row(function)).define(vjps)
    if isinstance(function, np.ufunc) or hasattr(function, "_implementation"):
        return function

    @functools.wraps(function)
    def recording(*args: Any, **options: Any) -> Any:
        plain = not any(isinstance(leaf, Tensor) for leaf in _leaves((args, options)))
        return function(*args, **options) if plain else _apply(function, args, options)

    _table[recording] = _table[function]
    return recording


def _variadic(function, compute, vjp, arrays, **options):
    """Call a function of any number of arrays, of which array i has ``vjp(i, g, out, *arrays, **options)``."""
    arrays, row = _tensors(*arrays), _table[function]
    with _lock:
        if len(row.vjps) < len(arrays):
            row.define([functools.partial(vjp, i) for i in range(2 * len(arrays))], row.expression)
    values, nodes = [_as_array(array._value) for array in arrays], [array._node for array in arrays]
    return _record(row, nodes, values, _compute(function, compute, values, options), options)


def _axes(x, axis):
    """``axis`` as a tuple of the axes that it stands for, none negative. (NumPy lets numbers have an axis 0.)"""
    axes = range(x.ndim) if axis is None else normalize_axis_tuple(axis, x.ndim or 1)
    return tuple(axes)[: x.ndim]


def _kept(x, axis, keepdims=True):
    """The shape of a reduction of x over ``axis``."""
    axes = _axes(x, axis)
    return tuple([1 if a in axes else n for a, n in enumerate(x.shape) if keepdims or a not in axes])


def _merged(x, axis):
    """x with the axes that a reduction goes over merged into one, the last."""
    axes = _axes(x, axis)
    n = math.prod([x.shape[a] for a in axes])
    return np.moveaxis(x, axes, range(-len(axes), 0)).reshape((*_kept(x, axis, keepdims=False), n))


def _nonzero(x):
    """x, but 1 where it is 0: to divide by."""
    return np.where(x == 0, 1, x)


def _whole(g, x):
    """A gradient that was left smaller, in the shape of the x that it belongs to."""
    return g if g.shape == x.shape else np.broadcast_to(g, x.shape)


def _spread(g, out, x, axis):
    """The gradient of a sum over ``axis`` goes to every element of x alike, as broadcasting will do."""
    return _whole(g, out).reshape(_kept(x, axis)) if g.ndim else g


def _share(g, out, a, axis=None, *, keepdims=False):
    """The gradient of max and min: to the elements that are it, in equal shares where there are ties."""
    hit = ((a == out.reshape(_kept(a, axis))) | (a != a)).astype(g.dtype)  # nan is its own maximum
    return g.reshape(_kept(a, axis)) * (hit / hit.sum(axis=axis, keepdims=True))


def _won(g, lost, tied):
    """The gradient of maximum and minimum: nothing to the operand that lost, half to each where they are equal."""
    return np.where(lost, 0, np.where(tied, g / 2, g))


def _power_less(x, y):
    """x**(y - 1), but x**0 where x and y are 0: so that y * x**(y - 1), the derivative of x**y, is 0 there too."""
    if not isinstance(y, (int, float)):
        return x ** np.where((x == 0) & (y == 0), 0, y - 1)
    less = y - (y != 0)
    return x if less == 1 and not isinstance(x, Tensor) else np.power(x, less) if x.__class__ is float else x**less


def _log_of(x, y, out):
    """log(x) in the dtype of out = x**y, for d(out)/dy = out * log(x); 0 where x is 0 and out stays 0 or 1 beside y."""
    x = x.astype(out.dtype) if hasattr(x, "astype") else _as_array(out).dtype.type(x)
    return np.log(np.where((x == 0) & (y >= 0), 1, x))


def _mT(x):
    return x.swapaxes(-1, -2)


def _matmul_vjp_x(g, _out, _x, y):
    if y.ndim == 1:
        return g[..., None] * y
    if _x.ndim == 1:
        return y @ g if g.ndim == 1 else (y @ g[..., None])[..., 0]
    return g @ _mT(y)


def _matmul_vjp_y(g, _out, x, _y):
    if x.ndim == 1:
        return x[:, None] * g[..., None, :] if _y.ndim > 1 else g * x
    return _mT(x) @ g if _y.ndim > 1 or g.ndim == 1 else (_mT(x) @ g[..., None])[..., 0]


def _to_kind(g, x):
    """g as an array of the kind that x is, of another library, and in the same chunks if it has any."""
    g = g if type(g) is type(x) and g.shape == x.shape else g + np.zeros_like(x)
    return g.rechunk(x.chunks) if getattr(g, "chunks", None) != getattr(x, "chunks", None) else g


def _is_basic(index):
    """Whether an index names no element twice."""
    items = index if isinstance(index, tuple) else (index,)
    return all(isinstance(i, (int, np.integer, slice, type(None), type(...))) and type(i) is not bool for i in items)


def _add_at(values, index, like):
    """Zeros of the shape and kind of ``like``, with the values added at an index: what repeats in the index adds up."""
    items = index if isinstance(index, tuple) else (index,)
    if all(i is None or i is ... or (type(i) is slice and i == slice(None)) for i in items):
        return values.reshape(like.shape)
    if traced := [x for x in (values, *items) if isinstance(x, _Traced)]:
        return traced[0].trace.call(_add_at, (values, index, like), {})
    out = np.zeros_like(like if _is_foreign(like) else values, values.dtype, shape=like.shape)
    if not _is_basic(index):
        np.add.at(out, index, values)
    elif values.size:  # into slices, which every library can write to
        part = [slice(int(i), int(i) + 1 or None) if hasattr(i, "__index__") else i for i in items if i is not None]
        out[tuple(part)] = values.reshape(out[tuple(part)].shape)
    return out


def _join_vjp(i, g, _out, *_arrays, axis):
    start = sum([array.shape[axis] for array in _arrays[:i]])
    return g.swapaxes(0, axis)[start : start + _arrays[i].shape[axis]].swapaxes(0, axis)


def _contract(*arrays, terms, optimize):
    return np.einsum(",".join(terms[1:]) + "->" + terms[0], *arrays, optimize=optimize)


def _contract_vjp(i, g, _out, *arrays, terms, optimize):
    """The sum of products with g in the place of array i.

    A letter that the term of array i has twice gets there through a unit matrix, one that no other term has as an axis
    along which all is the same.
    """
    rest, target = [*terms[: i + 1], *terms[i + 2 :]], terms[i + 1]
    operands = [g, *arrays[:i], *arrays[i + 1 :]]
    spare = [letter for letter in map(chr, range(65, 123)) if letter.isalpha() and letter not in "".join(terms)]
    for axis, letter in enumerate(target):
        if target.count(letter) > 1:
            rest.append(letter + spare[axis])
            operands.append(np.eye(arrays[i].shape[axis], dtype=g.dtype))
            target = target[:axis] + spare[axis] + target[axis + 1 :]
    alone = tuple([axis for axis, letter in enumerate(target) if letter not in "".join(rest)])
    shared = "".join([letter for letter in target if letter in "".join(rest)])
    g = np.expand_dims(np.einsum(",".join(rest) + "->" + shared, *operands, optimize=bool(optimize)), alone)
    return g if g.shape == arrays[i].shape else g + np.zeros_like(arrays[i])


# fmt: off
relu = defvjp(_relu,       lambda g, out, _x: np.where(out <= 0, 0, g))
sigmoid = defvjp(_sigmoid, lambda g, out, _x: g * (out * (1 - out)))
_alike = defvjp(_to_kind,  lambda g, _, _g, _x: g)
_scatter = defvjp(_add_at, lambda g, _, _values, index, like: g[index])
defvjp(op.getitem,         lambda g, _, _x, index: _scatter(g, index, _unwrapped(_x)))
defvjp(_astype,            lambda g, _, _x, _dtype: g)

defvjp(np.add,         lambda g, _, _x, _y: g,                       lambda g, _, _x, _y: g)
defvjp(np.subtract,    lambda g, _, _x, _y: g,                       lambda g, _, _x, _y: -g)
defvjp(np.multiply,    lambda g, _, _x, y: g * y,                    lambda g, _, x, _y: g * x)
defvjp(np.divide,      lambda g, _, _x, y: g / y,                    lambda g, out, _x, y: -g * out / y)
defvjp(np.power,       lambda g, _, x, y: g * y * _power_less(x, y), lambda g, out, x, y: g * out * _log_of(x, y, out))
defvjp(np.remainder,   lambda g, _, _x, _y: g,                       lambda g, _, x, y: -g * np.floor_divide(x, y))
defvjp(np.maximum,     lambda g, _, x, y: _won(g, x < y, x == y),    lambda g, _, x, y: _won(g, y < x, x == y))
defvjp(np.minimum,     lambda g, _, x, y: _won(g, x > y, x == y),    lambda g, _, x, y: _won(g, y > x, x == y))
defvjp(np.hypot,       lambda g, out, x, _y: g * x / _nonzero(out),  lambda g, out, _x, y: g * y / _nonzero(out))
defvjp(np.arctan2,     lambda g, _, y, x: g * (x / (r := _nonzero(np.hypot(x, y)))) / r,
                       lambda g, _, y, x: -g * (y / (r := _nonzero(np.hypot(x, y)))) / r)
defvjp(np.logaddexp,   lambda g, _, x, y: g * sigmoid(x - y),        lambda g, _, x, y: g * sigmoid(y - x))
defvjp(np.logaddexp2,  lambda g, _, x, y: g * sigmoid((x - y) * math.log(2)),
                       lambda g, _, x, y: g * sigmoid((y - x) * math.log(2)))
defvjp(np.where, None, lambda g, _, c, _x, _y: np.where(c, g, 0),    lambda g, _, c, _x, _y: np.where(c, 0, g))
defvjp(np.matmul,      _matmul_vjp_x,                                _matmul_vjp_y)

_unary: dict[Callable, Callable] = {
    np.positive: lambda g, _, _x: g,                                 np.negative: lambda g, _, _x: -g,
    np.absolute: lambda g, _, x: g * np.sign(x),                     np.sqrt:     lambda g, out, _x: g / (2 * out),
    np.cbrt:     lambda g, out, _x: g / (3 * out * out),             np.exp:      lambda g, out, _x: g * out,
    np.exp2:     lambda g, out, _x: g * (out * math.log(2)),         np.expm1:    lambda g, out, _x: g * (out + 1),
    np.log:      lambda g, _, x: g / x,                              np.log10: lambda g, _, x: g / (x * math.log(10)),
    np.log2:     lambda g, _, x: g / (x * math.log(2)),              np.log1p:    lambda g, _, x: g / (1 + x),
    np.sin:      lambda g, _, x: g * np.cos(x),                      np.cos:      lambda g, _, x: -g * np.sin(x),
    np.tan:      lambda g, out, _x: g * (1 + out * out),             np.arctan:   lambda g, _, x: g / (1 + x * x),
    np.arcsin:   lambda g, _, x: g / np.sqrt((1 - x) * (1 + x)),     np.sinh:     lambda g, _, x: g * np.cosh(x),
    np.arccos:   lambda g, _, x: -g / np.sqrt((1 - x) * (1 + x)),    np.cosh:     lambda g, _, x: g * np.sinh(x),
    np.arccosh:  lambda g, _, x: g / np.sqrt((x - 1) * (x + 1)),     np.arcsinh:  lambda g, _, x: g / np.hypot(x, 1),
    np.arctanh:  lambda g, _, x: g / ((1 - x) * (1 + x)),            np.tanh:     lambda g, y, _x: g * (1 - y * y),
    np.max:      _share,                                             np.min:      _share,
    np.ravel:    lambda g, _, _a: g.reshape(_a.shape),          np.flip: lambda g, _, _m, axis=None: np.flip(g, axis),
    np.squeeze:  lambda g, _, _a, axis=None: g.reshape(_a.shape),    np.broadcast_to: lambda g, _, _array, shape: g,
}
for unary, unary_vjp in _unary.items():
    defvjp(unary, unary_vjp)
defvjp(np.sum,         lambda g, _out, _a, axis=None, *, keepdims=False: _spread(g, _out, _a, axis))
defvjp(np.mean,        lambda g, _out, _a, axis=None, *, keepdims=False: (
                           _spread(g * (_out.size / max(_a.size, 1)), _out, _a, axis)))
defvjp(np.cumsum,      lambda g, _, _a, axis=None: np.flip(np.cumsum(np.flip(g, axis), axis), axis).reshape(_a.shape))
defvjp(np.nan_to_num,  lambda g, _, x, *, nan=0.0, posinf=None, neginf=None: np.where(np.isfinite(x), g, 0))
defvjp(np.reshape,     lambda g, _, _a, shape=None, *, newshape=None: g.reshape(_a.shape))
defvjp(np.expand_dims, lambda g, _, _a, axis: g.reshape(_a.shape))
defvjp(np.swapaxes,    lambda g, _, _a, axis1, axis2: g.swapaxes(axis1, axis2))
defvjp(np.transpose,   lambda g, _, _a, axes=None: np.transpose(
                           g, None if axes is None else np.argsort(_axes(_a, axes)).tolist()))
defvjp(np.roll,        lambda g, _, _a, shift, axis=None: np.roll(g, (-np.array(shift, int)).tolist(), axis))

defvjp(np.linalg.inv,  lambda g, out, _a: -(_mT(out) @ g @ _mT(out)))
defvjp(np.linalg.det,  lambda g, out, a: (g * out)[..., None, None] * _mT(np.linalg.inv(a)))
_sign_of_det = defvjp(lambda a: np.linalg.slogdet(a)[0], None)
_log_of_det = defvjp(lambda a: np.linalg.slogdet(a)[1], lambda g, _, a: g[..., None, None] * _mT(np.linalg.inv(a)))
_solve = defvjp(functools.partial(np.linalg.solve), lambda g, out, a, _b: -(np.linalg.solve(_mT(a), g) @ _mT(out)),
                                                    lambda g, _, a, _b: np.linalg.solve(_mT(a), g))

# fmt: on

for function, row in _table.items():
    elementwise = isinstance(function, np.ufunc) and not function.signature
    row.elastic = elementwise or function in (np.sum, np.mean, np.where, _relu, _sigmoid, _astype)


def _by_method(a, *args, function, **options):
    """A reduction, of NumPy's arrays by their method of that name, which is where NumPy's function would end up."""
    by = getattr(a, function.__name__) if isinstance(a, (_ndarray, np.generic)) else functools.partial(function, a)
    return by(*args, **options)


def _mean(a, *args, **options):
    """NumPy's mean; of all elements their sum, divided, which is all that it does, but in half of the time."""
    is_plain = a.__class__ is _ndarray and a.size and a.dtype.char in "fd" and not args and not options
    return a.sum() / a.size if is_plain else np.mean(a, *args, **options)


# The quickest ways to some values. Python's own operators are many times faster on NumPy scalars.
_table[np.negative].compute, _table[np.positive].compute, _table[np.absolute].compute = op.neg, op.pos, abs
_table[op.getitem].compute, _table[np.mean].compute = lambda x, index: _as_array(x)[index], _mean
for function in (np.sum, np.max, np.min):
    _table[function].compute = functools.partial(_by_method, function=function)

# What follows says NumPy's functions in others of the table, with NumPy's names for the parameters.


def _tensors(*arrays):
    """Arrays as Tensors; a Python number among them is an array too, as for NumPy's functions that are no ufuncs."""
    return [array if isinstance(array, Tensor) else Tensor(array) for array in arrays]


def _clip(a, a_min=None, a_max=None, *, min=None, max=None):
    low, high = a_min if min is None else min, a_max if max is None else max
    a = a if low is None else np.where(np.less(a, low) | np.not_equal(low, low), low, a)
    return a if high is None else np.where(np.greater(a, high) | np.not_equal(high, high), high, a)


def _prod(a, axis=None, *, keepdims=False):
    """As a tree of products, without division: zeros among the factors do no harm at any order."""
    shape, a = _kept(a, axis, keepdims), _merged(a, axis)
    while (n := a.shape[-1]) > 1:
        a = np.concatenate([a[..., : n // 2] * a[..., n // 2 : n // 2 * 2], a[..., n // 2 * 2 :]], -1)
    return (a if n else a.sum(-1) + 1).reshape(shape)


def _cumprod(a, axis=None):
    """In log2(n) steps (Hillis and Steele, 1986), without division too."""
    a, n = np.ravel(a) if axis is None else np.moveaxis(np.atleast_1d(a), axis, 0), 1
    while n < len(a):
        a, n = np.concatenate([a[:n], a[n:] * a[:-n]]), 2 * n
    return a if axis is None else np.moveaxis(a, 0, axis)


def _var(a, axis=None, *, ddof=0, keepdims=False):
    d = a - a.mean(axis=axis, keepdims=True)
    total = (d * d).sum(axis=axis, keepdims=keepdims)
    return total / max(int(d.size) / max(total.size, 1) - float(ddof), 0.0)


def _root(x, p=2):
    """x**(1 / p), with a gradient of 0 where x is 0."""
    return np.where(x == 0, 0, _nonzero(x) ** (1 / p))


def _average(a, axis=None, weights=None, *, keepdims=False):
    if weights is None:
        return np.mean(a, axis, keepdims=keepdims)
    a, weights = _tensors(a, weights)
    over = tuple([a.shape[i] for i in _axes(a, axis)])
    _check(weights.shape in (a.shape, over), f"np.average of {a.shape} takes weights of {over}, not {weights.shape}")
    weights = weights.astype(np.result_type(weights, a if a.dtype.kind == "f" else np.float64))
    weights = _merged(weights, axis) if weights.shape == a.shape else np.ravel(weights)
    return ((_merged(a, axis) * weights).sum(-1) / weights.sum(-1)).reshape(_kept(a, axis, keepdims))


def _median(a, axis=None, *, keepdims=False):
    ordered = np.sort(_merged(a, axis))
    n, last = ordered.shape[-1], ordered[..., -1:].sum(-1)  # which is nan if any is
    middle = ordered[..., (n - 1) // 2 : n // 2 + 1].mean(-1)
    return np.where(np.isnan(last), last, middle).reshape(_kept(a, axis, keepdims))


def _take(a, indices, axis=None):
    _check_local(np.take, indices)
    a, index = np.ravel(a) if axis is None else np.atleast_1d(a), _as_value(_unwrapped(indices))
    if not isinstance(index, _Traced):
        index = index.astype(int, casting="safe" if index.size else "unsafe")[()]
    return a[(*[slice(None)] * _axes(a, axis or 0)[0], index)]


def _diff(a, n=1, axis=-1):
    _check(n >= 0 and a.ndim, f"np.diff of shape {a.shape}, {n} times: it takes an axis, and no negative times")
    a = np.moveaxis(a, axis, 0)
    for _ in range(n):
        a = a[1:] - a[:-1]
    return np.moveaxis(a, 0, axis)


def _norm(x, ord=None, axis=None, keepdims=False):
    axes, keep = _axes(x, axis), {"keepdims": keepdims}
    if (ord is None and (axis is None or len(axes) < 3)) or (len(axes), ord) in ((1, 2), (2, "fro")):
        return _root(np.sum(x * x, axis, **keep))
    known = {1: isinstance(ord, (int, float, np.number)), 2: ord in (1, -1, math.inf, -math.inf)}.get(len(axes))
    _check(known, f"np.linalg.norm with ord={ord!r} over {len(axes)} axes has no derivative rule", TypeError)
    size = np.abs(x) if len(axes) == 1 else np.abs(x).sum(axes[abs(ord) != 1], keepdims=True)  # of columns, or of rows
    if len(axes) == 2 or abs(ord) == math.inf:
        return (np.max if ord > 0 else np.min)(size, axes, **keep)
    powers = np.where(size == 0, math.inf if ord < 0 else 0, _nonzero(size) ** float(ord))
    return _root(np.sum(powers, axis, **keep), float(ord)) if ord else np.sum(powers, axis, **keep)


def _tensordot(a, b, axes=2):
    """One product of matrices, in whose columns and rows the axes to sum over are merged."""
    a, b = _tensors(a, b)
    over = (range(-axes, 0), range(axes)) if isinstance(axes, (int, np.integer)) else axes
    lengths = [[x.shape[i] for i in _axes(x, o)] for x, o in zip((a, b), over, strict=True)]
    _check(lengths[0] == lengths[1], f"np.tensordot of shapes {a.shape} and {b.shape} over axes of {lengths}")
    a, b = _merged(a, over[0]), _merged(b, over[1])
    rows, columns = [x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) for x in (a, b)]
    return (rows @ columns.T).reshape(a.shape[:-1] + b.shape[:-1])


def _cross(a, b, axisa=-1, axisb=-1, axisc=-1, axis=None):
    a, b = [np.moveaxis(x, i if axis is None else axis, -1) for x, i in ((a, axisa), (b, axisb))]
    _check(a.shape[-1] == b.shape[-1] == 3, f"np.cross takes vectors of 3 components, not {a.shape} and {b.shape}")
    cross = np.roll(a, -1, -1) * np.roll(b, 1, -1) - np.roll(a, 1, -1) * np.roll(b, -1, -1)
    return np.moveaxis(cross, -1, axisc if axis is None else axis)


def _einsum(*operands, optimize=False):
    """With a letter for each axis, as NumPy spells it out when asked for the order of the products."""
    shapes = [np.broadcast_to(0, x.shape) if hasattr(x, "shape") else x for x in operands]
    terms, result = np.einsum_path(*shapes)[1].split()[2].split("->")
    arrays = operands[1:] if isinstance(operands[0], str) else operands[: len(operands) // 2 * 2 : 2]
    return _variadic(np.einsum, _contract, _contract_vjp, arrays, terms=[result, *terms.split(",")], optimize=optimize)


def _move(function, a, *args, **options):
    """A function that moves elements, or puts zeros between: what it does to their numbers, from 1, says where to."""
    _check_local(function, a, args, options)
    flat = np.ravel(a)

    def taken(numbers):
        numbers = _as_value(numbers)
        puts_zeros = function is not np.take_along_axis and not numbers.all()
        return (np.concatenate([flat, np.zeros(1, flat.dtype)]) if puts_zeros else flat)[numbers - 1]

    return _map(taken, function(np.arange(1, flat.size + 1).reshape(np.shape(a)), *args, **options))


def _pad(array, pad_width, mode="constant"):
    _check(mode in {"constant", "edge", "reflect", "symmetric", "wrap"}, f"np.pad with {mode=} has no rule", TypeError)
    return _move(np.pad, array, pad_width, mode)


def _lengthen(function, *arys):
    """A function that only adds axes of length 1, to each of its arguments."""
    out = [np.reshape(array, function(np.broadcast_to(0, np.shape(array))).shape) for array in arys]
    return tuple(out) if len(out) > 1 else out[0]


# fmt: off
_expressions = {
    "amax": np.max, "amin": np.min, "average": _average, "clip": _clip, "copy": lambda a: +a, "cross": _cross,
    "cumprod": _cumprod, "diff": _diff, "einsum": _einsum, "fabs": abs, "linalg.matmul": op.matmul, "median": _median,
    "linalg.norm": _norm, "linalg.tensordot tensordot": _tensordot, "matrix_transpose linalg.matrix_transpose": _mT,
    "pad": _pad, "prod": _prod, "take": _take, "var": _var, "square": lambda x: x * x, "reciprocal": lambda x: 1 / x,
    "deg2rad radians": lambda x: x * (math.pi / 180), "rad2deg degrees": lambda x: x * (180 / math.pi),
    **{name: functools.partial(_move, getattr(np, name)) for name in (
        "array_split", "diag", "diagonal", "dsplit", "fliplr", "flipud", "hsplit", "repeat", "rot90", "split",
        "take_along_axis", "tile", "tril", "triu", "vsplit")},
    **{f"atleast_{n}d": functools.partial(_lengthen, getattr(np, f"atleast_{n}d")) for n in (1, 2, 3)},
    "dot": lambda a, b: a @ b if np.ndim(a) and 0 < np.ndim(b) < 3 else (
        np.tensordot(a, b, (-1, -2) if np.ndim(a) and np.ndim(b) else 0)),
    "inner": lambda a, b: np.dot(a, b) if 0 in (np.ndim(a), np.ndim(b)) else np.tensordot(a, b, (-1, -1)),
    "outer": lambda a, b: np.ravel(a)[:, None] * np.ravel(b), "vdot": lambda a, b: np.ravel(a) @ np.ravel(b),
    "trace": lambda a, offset=0, axis1=0, axis2=1: np.diagonal(a, offset, axis1, axis2).sum(-1),
    "linalg.slogdet": lambda a: np.linalg.slogdet(np.eye(1))._replace(sign=_sign_of_det(a), logabsdet=_log_of_det(a)),
    "linalg.solve": lambda a, b: _solve(*_tensors(a, b)) if np.ndim(b) > 1 else (
        np.linalg.solve(a, np.reshape(b, (-1, 1)))[..., 0]),
    "kron": lambda a, b: (_move(np.kron, a, np.ones(np.shape(b), int)) *
                          _move(lambda numbers, ones: np.kron(ones, numbers), b, np.ones(np.shape(a), int))),
    "fmax": lambda x, y: np.where(np.greater_equal(x, y) | np.not_equal(y, y), x, y),
    "fmin": lambda x, y: np.where(np.less_equal(x, y) | np.not_equal(y, y), x, y),
    "full_like": lambda a, fill_value, dtype=None, *, shape=None: (
        ((zeros := np.zeros_like(a, dtype, shape=shape)) + fill_value).astype(zeros.dtype)),
    "ptp": lambda a, axis=None, *, keepdims=False: a.max(axis, keepdims=keepdims) - a.min(axis, keepdims=keepdims),
    "std": lambda a, axis=None, *, ddof=0, keepdims=False: _root(np.var(a, axis, ddof=ddof, keepdims=keepdims)),
    "moveaxis": lambda a, source, destination: a.transpose(
        np.moveaxis(np.empty(range(a.ndim)), source, destination).shape),
    "sort": lambda a, axis=-1, kind=None: np.take_along_axis(a, np.argsort(a, axis, kind), axis),
    "concatenate": lambda arrays, axis=0: (np.concatenate([*map(np.ravel, arrays)]) if axis is None else _variadic(
        np.concatenate, lambda *arrays, axis: np.concatenate(arrays, axis), _join_vjp, arrays, axis=axis)),
    "stack": lambda arrays, axis=0: np.concatenate([np.expand_dims(a, axis) for a in arrays], axis),
    "vstack": lambda tup: np.concatenate([np.atleast_2d(a) for a in tup]),
    "hstack": lambda tup: np.concatenate([np.atleast_1d(a) for a in tup], int(np.ndim(tup[0]) > 1)),
    "dstack": lambda tup: np.concatenate([np.atleast_3d(a) for a in tup], 2),
    "column_stack": lambda tup: np.concatenate([a if np.ndim(a) > 1 else np.reshape(a, (-1, 1)) for a in tup], 1),
}
_constants = """
    all allclose any argmax argmin argpartition argsort argwhere around array_equal array_equiv bitwise_and bitwise_or
    bitwise_xor ceil count_nonzero empty_like equal fix flatnonzero floor floor_divide greater greater_equal invert
    isclose isfinite isin isinf isnan isneginf isposinf less less_equal logical_and logical_not logical_or logical_xor
    ndim nonzero not_equal ones_like result_type rint round shape sign signbit size trunc zeros_like"""
# fmt: on
for names, expression in (*_expressions.items(), (_constants, None)):
    for name in names.split():
        with contextlib.suppress(AttributeError):  # NumPy's releases differ
            function = op.attrgetter(name)(np)
            _table.setdefault(function, _Row(function)).define(expression=expression)


# --- Backward ---------------------------------------------------------------------------------------------------------
# Nodes are taken newest first: parents are older than their children, so that all of a node's gradient has arrived when
# its turn comes. The running gradients live in a dict of this one call and leave it as soon as they have been used.
# Through the rules of an elastic row they may go smaller than the arrays that they belong to, as one number perhaps,
# where broadcasting makes up for the rest.


def _backward(gradients, create_graph, stop=1):
    """The gradients of the leaves, as a dict from nodes, that come from those of some results, a dict from nodes too.

    With ``stop``, the order of a node: its gradient, and of older nodes no more than came before its own was complete.
    """
    if create_graph:
        gradients = {node: _as_tensor(g) for node, g in gradients.items()}
    heap: list = []
    for node in gradients:
        if node.row is not None:  # a leaf keeps its gradient
            heappush(heap, (node.order, node))
    watching = _thread.recorder is not _Node
    trace = _thread.trace if _traces else None
    if trace:
        of, before = next((node.out for node in gradients if node.row), None), trace.step
    while heap and heap[0][0] < stop:
        node = heappop(heap)[1]
        row, out, values, options = node.row, node.out, node.values, node.options
        g = gradients.pop(node)
        if create_graph:  # the saved values, linked to their places in the graph
            out = _wrap(out, node)
            values = [v if p is None else _wrap(v, p) for v, p in zip(values, node.parents, strict=True)]
        for i, parent in enumerate(node.parents):
            if parent is None:
                continue
            x, vjp = values[i], row.vjps[i]
            if trace:
                trace.step = of, x
            if len(values) == 2 and not options:  # the most frequent, and in this form the fastest
                part = vjp(g, out, values[0], values[1])
            else:
                part = vjp(g, out, *values, **(options or {}))
            if not part.__class__ is x.__class__ is out.__class__ is _float64:
                part = _fit(part, x, out, row, parent)
            if parent in gradients:
                gradients[parent] = gradients[parent] + part
            else:
                gradients[parent] = part
                if parent.row is not None:
                    heappush(heap, (parent.order, parent))
            if watching:
                _watch_gradient(node, i, g, gradients[parent])
            if trace:
                trace.slopes[trace.lines_of(of, x)][parent.order] = trace.lines_of(gradients[parent])[0]
    if trace:
        trace.step = before
    return gradients


def _one(value):
    """The gradient that a way back begins with: 1, for NumPy's numbers as such a number."""
    return value.__class__(1) if isinstance(value, np.generic) else np.ones_like(value)


def _taken(gradients):
    """A leaf and its gradient out of a dict, and how many references there are to the latter."""
    leaf, g = gradients.popitem()
    return leaf, g, sys.getrefcount(g)


_unshared = _taken({None: object()})[2]  # so many where nobody else has it, which depends on Python's release


def _fit(g, x, out, row, parent):
    """A gradient in the dtype and shape of the x that it belongs to: summed over the axes that broadcasting made."""
    if g.__class__ is x.__class__ is _ndarray:
        if g.shape == x.shape and g.dtype is x.dtype and (x.shape == out.shape or not row.elastic):
            return g
    elif not hasattr(g, "dtype"):
        raise TypeError(f"a rule of {_name(row.function)} returned a {type(g).__name__}: it must return an array")
    else:
        x, out = _as_array(x), _as_array(out)
    stretched = g if not row.elastic else x if row.function in (np.sum, np.mean) else out
    if x.shape != stretched.shape:
        g = _whole(g, stretched)
        new = g.ndim - x.ndim
        axes = tuple([axis for axis, n in enumerate(g.shape) if axis < new or n != x.shape[axis - new]])
        fits = all(x.shape[a - new] == 1 if a >= new else g.shape[a : a + 1] == out.shape[a : a + 1] for a in axes)
        if new < 0 or not fits:
            raise ValueError(f"a rule of {_name(row.function)} returned shape {g.shape} for an argument of {x.shape}")
        g = g.sum(axes) if axes else g
        g = g if g.shape == x.shape else g.reshape(x.shape)
    elif parent.row is None or not parent.row.elastic or not x.size:  # a number is more than an array of nothing
        g = _whole(g, x)
    if g.dtype != x.dtype:
        if g.dtype.kind not in "biuf":
            raise TypeError(f"a rule of {_name(row.function)} returned dtype {g.dtype} for an argument of {x.dtype}")
        g = g.astype(x.dtype)
    return g if x.__class__ in _quick or not _is_foreign(_unwrapped(x)) else _alike(g, _unwrapped(x))


# --- Gradients of functions -------------------------------------------------------------------------------------------
# Here the variables are a function's arguments. Each call puts fresh nodes between the arguments and what it computes,
# and stops at these on the way back. So calls nest, to derivatives of any order, and no variable is taken for another.


_variable = _Row("a variable", (lambda g, _out, _x: g,))


class _Call:
    """One call of f with variables for some of its arguments: the result, and the way back from it.

    What comes back is a Tensor if it depends on more than these variables, on other Tensors that require gradients.
    """

    def __init__(self, f, argnums, args, options):
        self.recording, given = bool(_thread.recording), list(args)
        self.nodes: list[_Node] = []
        argnums, self.single = (argnums, False) if isinstance(argnums, (tuple, list, range)) else ((argnums,), True)
        places = [range(len(args))[i] for i in argnums if -len(args) <= i < len(args)]
        what = f"argnums must be different positions among {len(args)} positional arguments, not {argnums}"
        _check(len({*places}) == len(argnums), what)
        for i in places:
            given[i] = _map(self.variable, args[i])
        self.chosen = [args[i] for i in places]
        self.stop = min((node.order for node in self.nodes), default=0)
        self.is_open = any(node.parents[0] for node in self.nodes)
        with _recording(True):
            self.out = _map(_as_tensor, f(*given, **options))
        results, own = _leaves(self.out), any(_is_foreign(node.out) for node in self.nodes)
        lost = not own and any(_is_foreign(t._value) for t in results) and not any(t._node for t in results)
        what = "no gradient can be followed into an array of another library: call np.dot(X, w), np.mean(x) and the"
        _check(not lost, f"{what} like instead of that library's own functions and methods", TypeError)
        if _thread.trace:
            _thread.trace.name(self.out, getattr(f, "__name__", "f").replace("<lambda>", "f"))

    def variable(self, x):
        x = _as_tensor(x)
        _wrap(x._value, None).requires_grad = True  # an error if that cannot be
        node = _Node(_variable, (x._node if self.recording else None,), (x._value,), None)
        node.out = x._value  # never forgotten, for the call asks for its shape
        self.nodes.append(node)
        return _wrap(x._value, node)

    def gradients(self, results, gradients):
        """For each variable, what comes back to it from results with these gradients."""
        start: dict[_Node, Any] = {}
        for out, g in zip(results, gradients, strict=True):
            if out._node is not None:
                start[out._node] = start[out._node] + g if out._node in start else g
        create_graph = self.is_open or any(isinstance(g, Tensor) for g in start.values())
        found = _backward({**start}, create_graph, self.stop)
        self.is_open = self.is_open or (self.recording and bool(found.keys() - self.nodes))
        if self.is_open and not create_graph:  # only the way back told: once more, and recorded
            found = _backward(start, True, self.stop)
        return [found[node] if node in found else np.zeros_like(node.out) for node in self.nodes]

    def finished(self, t):
        """A Tensor if the call depends on more than its own variables, else an array of its own."""
        t = _as_tensor(t)
        is_open = self.is_open and t.requires_grad
        t = t if is_open else _wrap(t._value if t.dtype == bool else +t._value, None)
        return t if is_open or isinstance(t._value, _Traced) else t.data

    def arranged(self, results):
        """A result for each variable, in the structure of the arguments."""
        finished = map(self.finished, results)
        found = tuple(_map(lambda _: next(finished), self.chosen))
        return found[0] if self.single else found


def value_and_grad(f: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    """A function that returns what f returns, one number, and its gradient.

    Parameters
    ----------
    f : a function of arrays, which get to it as Tensors; it may call ``grad`` itself, and so on.
    argnums : the position of the argument to differentiate by, or a tuple of several. These arguments are floats,
        arrays of floats or Tensors, or nested tuples, lists and dicts of such.

    Returns
    -------
    A function of the same arguments. It returns the value, an array, and the gradient, an array of the argument's shape
    and dtype or a structure of such; for a tuple ``argnums`` a tuple of gradients. What depends on other Tensors that
    require gradients is a Tensor. A Python float takes the dtype of what it meets, as in NumPy.

    Raises
    ------
    TypeError, ValueError : for arguments that are not floats, for ``argnums`` that name none, and for an f that returns
        more than one number.

    >>> value_and_grad(lambda x: (x**3).sum())(np.array([1.0, 2.0]))
    (array(9.), array([ 3., 12.]))
    """

    @functools.wraps(f)
    def value_and_gradient(*args, **options):
        call = _Call(f, argnums, args, options)
        one = isinstance(call.out, Tensor) and call.out.size == 1
        got = f"shape {call.out.shape}" if isinstance(call.out, Tensor) else call.out
        _check(one, f"a gradient needs a function that returns one number, not {got}: .sum() it, or take jacobian()")
        gradient = call.arranged(call.gradients([call.out], [_one(_as_array(call.out._value))]))
        return call.finished(call.out), gradient

    return value_and_gradient


def grad(f: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    """The gradient of a function that returns one number: the second half of ``value_and_grad``.

    Parameters
    ----------
    f, argnums : as in ``value_and_grad``.

    Returns
    -------
    A function of the same arguments. It returns an array of the argument's shape and dtype, or a structure of such.

    Raises
    ------
    TypeError, ValueError : for arguments that are not floats, for ``argnums`` that name none, and for an f that returns
        more than one number.

    >>> grad(grad(grad(np.sin)))(0.0)
    array(-1.)
    """

    both = value_and_grad(f, argnums)
    return functools.wraps(f)(lambda *args, **options: both(*args, **options)[1])


def jacobian(f: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    """The derivatives of every entry of a result by every entry of an argument: a backward pass for each of the former.

    Parameters
    ----------
    f, argnums : as in ``value_and_grad``, but f may return arrays of any shape, and structures of them.

    Returns
    -------
    A function of the same arguments. It returns, for an f of one array, an array of the shape of the result followed by
    that of the argument, in the argument's dtype. In a structure of results that is in the place of each array; for a
    structure of arguments it is one of such arrays.

    Raises
    ------
    TypeError, ValueError : for arguments that are not floats, and for ``argnums`` that name none.

    >>> jacobian(lambda x: x**2)(np.array([1.0, 2.0]))
    array([[2., 0.],
           [0., 4.]])
    """

    @functools.wraps(f)
    def jacobian_of_f(*args, **options):
        call = _Call(f, argnums, args, options)

        def rows(out):
            ones = np.eye(out.size, dtype=out.dtype).reshape(out.size, *out.shape)
            found = [call.gradients([out], [_read(one, arrays=True)]) for one in ones]
            none = [np.stack([np.zeros_like(v.out)])[:0] for v in call.nodes]  # for results without entries
            each = [np.stack([row[i] for row in found]) for i, _ in enumerate(none)] if found else none
            return call.arranged([x.reshape(out.shape + x.shape[1:]) for x in each])

        return _map(rows, call.out)

    return jacobian_of_f


def hessian(f: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    """The second derivatives of a function that returns one number: the ``jacobian`` of its ``grad``.

    Parameters
    ----------
    f, argnums : as in ``value_and_grad``.

    Returns
    -------
    A function of the same arguments. It returns an array of the argument's shape twice over, and its dtype; of
    structures one for each pair.

    Raises
    ------
    TypeError, ValueError : for arguments that are not floats, for ``argnums`` that name none, and for an f that returns
        more than one number.

    >>> hessian(lambda x: x[0] * x[1] ** 2)(np.array([1.0, 2.0]))
    array([[0., 4.],
           [4., 2.]])
    """
    return jacobian(grad(f, argnums), argnums)


def jvp(f: Callable, args: tuple, tangents: tuple) -> tuple[Any, Any]:
    """What f returns, an array or a structure of arrays, and how it changes when the arguments move along the tangents.

    Two backward passes do it: the way back from a result is linear in the gradient that it starts with, and the way
    back from there is forward (J. Townsend, 2017).

    Parameters
    ----------
    f : a function of arrays, as in ``jacobian``.
    args, tangents : tuples, of the arguments and of what they move by, in the same structure and shapes.

    Returns
    -------
    The result, and the product of its Jacobian and the tangents, which has its structure, shapes and dtypes.

    Raises
    ------
    TypeError, ValueError : for what is no tuple, for arguments that are not floats, and for tangents of another
        structure or shape.

    >>> jvp(lambda x, y: x * y, (2.0, 3.0), (1.0, 10.0))
    (array(6.), array(23.))
    """
    tuples = isinstance(args, (tuple, list)) and isinstance(tangents, (tuple, list))
    _check(tuples, "jvp() takes tuples of arguments and of tangents: write (x,) and (v,)", TypeError)
    structure, other = [str(_map(lambda x: _as_tensor(x).shape, (*trees,))) for trees in (args, tangents)]
    _check(structure == other, f"jvp() takes tangents with the structure of the arguments, {structure}, not {other}")
    call, tangents = _Call(f, range(len(args)), args, {}), tuple(map(_as_tensor, _leaves(tangents)))
    outs = _leaves(call.out)

    def back(us):
        return sum([np.sum(g * t) for g, t in zip(call.gradients(outs, us), tangents, strict=True)])

    moved = iter(grad(back)([np.zeros_like(out._value) * 1.0 for out in outs]))
    value = _map(call.finished, call.out)
    call.is_open = call.is_open or (call.recording and any(t.requires_grad for t in tangents))
    return value, _map(lambda _: call.finished(next(moved)), call.out)


# --- jit --------------------------------------------------------------------------------------------------------------
# While jit runs a function for the first time, its Tensors hold Traced values, arrays of a kind that note every call to
# NumPy, by rules too. The notes, less what is dead, double or trivial, are printed as one plain NumPy function.


class _Line:
    """A value in the generated function: a parameter (``function`` is None), or the NumPy call that makes it.

    ``like`` is its shape and dtype (None for what is no array) and whether it is a Python number. For a call on the way
    to a gradient, ``step`` has two lines: of the first with respect to the second.
    """

    __slots__ = ("args", "dtype", "function", "is_python", "like", "name", "ndim", "options", "shape", "size", "step")

    def __init__(self, function, args, options, like, step=()):
        self.function, self.args, self.options, self.step, self.name = function, args, options, step, ""
        self.like = self.shape, self.dtype, self.is_python = like
        self.ndim, self.size = len(self.shape or ()), math.prod(self.shape or ())


_nothing = None, None, False


def _like(x):
    """What the line of a value is like."""
    if type(x) in _python:
        return (), np.result_type(x), True
    return (x.shape, x.dtype, False) if isinstance(x, (np.ndarray, np.generic)) else _nothing


def _is_line(x):
    return x.__class__ is _Line


def _is_full(x):
    """Whether x is an array of one number throughout, as the gradient is that a way back begins with."""
    return _is_line(x) and x.function is np.full


def _refusal(what, advice):
    def refuse(*_args, **_options):
        raise _UntraceableError(f"jit() cannot follow {what}, as every call brings new values: {advice}")

    return refuse


class _Traced(np.lib.mixins.NDArrayOperatorsMixin):
    """What stands for a line while a function is traced, with an example of its value for shapes, dtypes and errors."""

    __slots__ = ("dtype", "example", "line", "ndim", "shape", "size", "trace")

    def __init__(self, trace, line, example):
        array = np.asarray(example)
        self.trace, self.line, self.example = trace, line, example
        self.shape, self.dtype, self.ndim, self.size = array.shape, array.dtype, array.ndim, array.size

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if any(isinstance(x, Tensor) for x in inputs):
            return NotImplemented
        if method != "__call__" or "out" in options:
            _refusal(f"{_name(ufunc)}.{method} or out=", "make a new array")()
        return self.trace.call(ufunc, inputs, options)

    def __array_function__(self, function, types, args, options):
        return NotImplemented if Tensor in types else self.trace.call(function, args, options)

    def __getattr__(self, name):
        found = getattr(_wrap(self, None), name)
        return found._value if isinstance(found, Tensor) else lambda *args, **options: found(*args, **options)._value

    def __getitem__(self, index):
        index = tuple(index) if isinstance(index, tuple) else [*index] if isinstance(index, range) else index
        return self.trace.call(op.getitem, (_as_array(self), index), {})

    def __len__(self):
        return len(self.example)

    def __repr__(self):
        return f"<of shape {self.shape}, traced>"

    def astype(self, dtype):
        return self.trace.call(_astype, (_as_array(self), dtype), {})

    __bool__ = _refusal("if, while or bool() of a Tensor", "write np.where or np.maximum, or decide and loop outside")
    __float__ = __int__ = _refusal("float(), int() or math's functions of a Tensor", "use np. functions")
    __index__ = _refusal(
        "a Tensor as an axis, a length or in range()", "give the function a Python int, which tracing fixes"
    )
    __array__ = _refusal("np.asarray(), .item() or a format of a Tensor", "use np. functions, np.stack for np.array")
    __setitem__ = _refusal("writing into an array", "make a new one with np.where, np.concatenate or np.stack")


# fmt: off
_symbols = {
    np.add: "+", np.subtract: "-", np.multiply: "*", np.divide: "/", np.power: "**", np.remainder: "%", np.matmul: "@",
    np.floor_divide: "//", np.equal: "==", np.not_equal: "!=", np.less: "<", np.less_equal: "<=", np.greater: ">",
    np.greater_equal: ">=", np.bitwise_and: "&", np.bitwise_or: "|", np.bitwise_xor: "^"}
# fmt: on
_plain_types = int, bool, str, type(None)  # written as their repr
_neutral = {np.multiply: 1, np.divide: 1, np.power: 1, np.subtract: 0, np.add: None, np.negative: None}
_reshape, _transpose = np.ndarray.reshape, np.ndarray.transpose  # what all that does the same becomes
_reshapes = {np.reshape, np.ravel, np.squeeze, np.expand_dims, np.atleast_1d, np.atleast_2d, np.atleast_3d}
_transposes = {np.transpose, np.swapaxes, np.moveaxis, np.matrix_transpose, np.linalg.matrix_transpose}
_reductions = {np.sum, np.mean, np.max, np.min, np.prod}
_methods = {*_reductions, np.any, np.all, np.argmax, np.argmin, np.cumsum, _reshape, _transpose, _astype}
_reserved = {"np", "float", "len", "NotImplemented", *keyword.kwlist}
_of_elements = {op.getitem, np.where, np.take, np.take_along_axis, np.clip, np.full_like, np.isclose, np.allclose}
_of_elements |= {np.array_equal, np.array_equiv, np.isin, np.dot, np.inner, np.outer, np.vdot, np.kron, np.tensordot}
_sized_by_values = """
    argwhere bincount compress extract flatnonzero histogram intersect1d nonzero setdiff1d setxor1d trim_zeros union1d
    unique unique_all unique_counts unique_inverse unique_values"""
_sized_by_arguments = "array_split broadcast_to delete dsplit hsplit insert pad repeat reshape split tile vsplit"


def _float_text(x):
    """The shortest text of a float: a ratio where its decimals have no end."""
    if not math.isfinite(x):
        return f"({x})".replace("nan", "np.nan").replace("inf", "np.inf")
    n, d = fractions.Fraction(x).limit_denominator(1_000_000).as_integer_ratio()
    return min([f"({x!r})", f"({n} / {d})"], key=len) if n / d == x else f"({x!r})"


def _number(c):
    """The simplest Python number that rounds to a NumPy scalar."""
    n, d = fractions.Fraction(c.item() if np.isfinite(c) else 0).limit_denominator(1000).as_integer_ratio()
    return c.item() if not n or type(c)(n / d) != c else n if d == 1 else n / d


def _literal(x):
    """The text of what may stand in the source: its repr if it is of exactly these types, or NumPy's name for it."""
    if type(x) in _plain_types:
        return f"({x!r})" if type(x) is int and x < 0 else repr(x)
    if type(x) is float:
        return _float_text(x)
    if type(x) is slice:
        parts = [_literal(part) for part in (x.start, x.stop, x.step)]
        return None if None in parts else f"slice({', '.join(parts)})"
    x = x.type if isinstance(x, np.dtype) and x == np.dtype(x.type) else x
    name = _name(x).replace("np.absolute", "np.abs") if callable(x) else ""
    with contextlib.suppress(AttributeError):
        return "..." if x is ... else name if name.startswith("np.") and op.attrgetter(name[3:])(np) is x else None


def _check_followed(function, args, options):
    """Refuse calls whose result has a shape that depends on values, and what else is fixed by them."""
    traced = [x for x in _leaves((args[1:], options)) if isinstance(x, _Traced)]
    name = getattr(function, "__name__", "") if hasattr(function, "_implementation") else ""
    is_sized = name in _sized_by_values.split() or (traced and name in _sized_by_arguments.split())
    by_elements = isinstance(function, np.ufunc) or function in _of_elements
    if not by_elements and any(not x.ndim and x.dtype.kind in "iu" for x in traced):
        op.index(traced[0])
    by_mask = function is op.getitem and any(x.dtype == bool for x in traced)
    if is_sized or by_mask or (function is np.where and len(args) < 3):
        _refusal("a result whose shape depends on values", "write np.where(mask, x, 0), or select outside")()


def _plain(text):
    """An expression without the parentheses that it does not need."""
    return ast.unparse(ast.parse(text, mode="eval"))


class _Trace:
    """What is noted while a function runs once, and the text that comes of it."""

    def __init__(self):
        self.lines: dict[Any, _Line] = {}  # by what they say, so that nothing is said twice
        self.outside: dict[int, _Line] = {}  # what else the function reads, by its id
        self.step: tuple[Any, ...] = ()  # of the lines to come, set by _backward
        # Of each step, by the order of nodes, the line that completes it.
        self.slopes: dict[Any, dict] = collections.defaultdict(dict)
        self.texts: dict[_Line, str] = {}  # of each line its name, or its call where that stands in for it
        self.names = collections.Counter(_reserved)  # how often they were asked for
        self.parameters: list[_Line] = []  # of the lines outside, those that the text reads
        self.roots: dict[_Line, _Line | None] = {}  # of a view, whose memory it is
        self.results: set[_Line] = set()  # whose memory is returned
        self.paths: dict[_Line, str] = {}  # where in the arguments a line is
        self.facts: list[str] = []  # what is taken as fixed
        self.refused: Exception | None = None
        self.has_new = False

    def enter(self, x, path, *where):
        """An argument with Traced values for arrays and floats; ``where``: the line of what it is in, and the key."""
        is_array = isinstance(x, (np.ndarray, np.generic)) or type(x) is float
        line = self.new(op.getitem, where, {}, _like(x)) if where else _Line(None, (), {}, _like(x))
        if not where:
            self.texts[line] = path
        if isinstance(x, (tuple, list, dict)):
            return _rebuilt(x, [self.enter(item, f"{path}_{key}", line, self.fixed(key)) for key, item in _items(x)])
        fact = str(line.shape) if is_array else "is fixed" + (f" as {_literal(x)}" if _literal(x) else "")
        self.facts.append(f"{path} {fact}" if path.isidentifier() else f"an argument {fact}")
        self.paths[line] = path
        return _wrap(_Traced(self, line, x), None) if is_array else x

    def bound(self, x):
        """The line of what is outside: a Tensor, whose value each call reads anew, or a thing that stays."""
        if id(x) not in self.outside:
            self.has_new = True
            self.outside[id(x)] = _Line(None, (x,), {}, _like(x._value if isinstance(x, Tensor) else x))
        return self.outside[id(x)]

    def fixed(self, x):
        return x if type(x) in _plain_types else self.bound(x)

    def captured(self, x):
        """What stands for a Tensor or an array from outside."""
        if not isinstance(x, Tensor):
            return _Traced(self, self.bound(x), x)
        _check_local(jit, x._value)
        what = "a computed Tensor from outside would lose its gradient under jit(): give it as an argument"
        _check(x._node is None or x._node.row is None, what, _UntraceableError)
        return _wrap(_Traced(self, self.bound(x), _as_scalar(x._value)), None)

    def line_of(self, x):
        x = tuple(x) if isinstance(x, range) else _read(x)._value if isinstance(x, Tensor) else x
        if isinstance(x, _Traced):
            what = "a Tensor from within a function under jit() was used outside: return it instead"
            _check(x.trace is self is _thread.trace, what, _UntraceableError)
            return x.line
        return x if isinstance(x, tuple) or _literal(x) is not None else self.bound(x)

    def call(self, function, args, options):
        """Note a call; what it gives."""
        what = "jit() generates code for NumPy's arrays: leave it out where there are arrays of another library"
        _check(not any(map(_is_foreign, _leaves((args, options)))), what, _UntraceableError)
        _check_followed(function, args, options)
        examples, named = _map(lambda x: x.example if isinstance(x, _Traced) else x, (args, options))
        out = function(*examples, **named)
        arrays = [x for x in _leaves((args, options)) if isinstance(x, (_Traced, np.ndarray))]
        if out is None or any(out is x for x in arrays):
            _refusal(f"{_name(function)} that writes into an array", "make a new one")()
        if function in (np.shape, np.ndim, np.size, np.result_type):
            return out
        is_operator = function in _symbols or function in (np.negative, np.positive, np.absolute)
        if is_operator and all(x.__class__ in _python for x in examples):  # as Python has it
            out = out.item() if out.dtype == float or function in (np.add, np.subtract, np.multiply) else out
        args, options = _map(self.line_of, (args, options))
        self.take_names()
        if not isinstance(out, (tuple, list)):
            return self.value(self.line(function, args, options, _like(out)), out, arrays)
        whole = self.new(function, args, options, _nothing)
        parts = [self.new(op.getitem, (whole, i), {}, _like(x)) for i, x in enumerate(out)]
        return _rebuilt(out, [self.value(part, x, arrays) for part, x in zip(parts, out, strict=True)])

    def value(self, line, out, arrays):
        """What stands for a line; and whose memory it is, if that of one of the arrays it was made of."""
        memory = [x.example if isinstance(x, _Traced) else x for x in arrays]
        shared = [self.line_of(x) for x, m in zip(arrays, memory, strict=True) if np.may_share_memory(out, m)]
        is_view = line.function in (_reshape, _transpose, np.broadcast_to)  # of some memory orders at least
        is_view = is_view or (line.function is op.getitem and line.shape and _is_basic(line.args[1]))
        for x in [line.args[0]] if is_view else shared if not _is_full(line) else []:
            self.roots[line] = self.roots.get(x, x)
        if line.function is np.broadcast_to or not (_is_full(line) or np.asarray(out).flags.writeable):
            self.roots[line] = None
        return _Traced(self, line, out)

    def take_names(self):
        """Name lines as the function that calls NumPy names its variables."""
        frame: Any = sys._getframe()
        within = {frame.f_code.co_filename}  # this file
        while frame and (frame.f_code.co_filename in within or frame.f_globals.get("__name__", "").startswith("numpy")):
            frame = frame.f_back
        code = frame and frame.f_code
        for name in code.co_varnames + code.co_cellvars + code.co_freevars + code.co_names if frame else ():
            x = frame.f_locals.get(name, frame.f_globals.get(name))
            if self.has_new or isinstance(x, Tensor):
                self.name(x, name)
            if self.has_new:  # from outside: an item or attribute of x perhaps
                parts = _items(x) if isinstance(x, (tuple, list, dict)) else getattr(x, "__dict__", {}).items()
                for key, part in itertools.islice(parts, 100):
                    self.name(part, f"{name}_{key}")
        self.has_new = False

    def name(self, x, name):
        value = x._value if isinstance(x, Tensor) else x
        line = value.line if isinstance(value, _Traced) else self.outside.get(id(x))
        if line is not None and not line.name and name.isidentifier():
            line.name = name

    # Simplifying

    def new(self, function, args, options, like):
        """A line as it is, or the older one that says the same."""
        said = [*map(str, _map(lambda x: f"#{id(x)}" if _is_line(x) else repr(x), (*args, options)))]
        key = function, like, *(sorted(said) if function in (np.add, np.multiply) else said)
        if key not in self.lines:
            self.lines[key] = _Line(function, args, options, like, self.lines_of(*self.step))
        return self.lines[key]

    def lines_of(self, *xs):
        return tuple([getattr(_unwrapped(x), "line", None) for x in xs])

    def line(self, function, args, options, like):
        """The line of a call, in the simplest form that it has."""
        shape, dtype, _ = like
        if function is _astype:
            args = args[0], dtype
        if function is _add_at:
            args = (_number(args[0].args[1]) if _is_full(args[0]) else args[0]), args[1]
        x: Any = args[0] if args else None
        rest = args[1:]
        size, by_order = math.prod(shape), any(_is_line(a) or isinstance(a, str) for a in _leaves((rest, options)))

        def full(c):
            return self.new(np.full, (shape, dtype.type(c), dtype), {}, like)

        if function in (np.zeros_like, np.ones_like) and dtype in (np.float32, np.float64):
            return full(function is np.ones_like)
        if _is_line(x) and x.like[1:] == like[1:] and not by_order:
            reduces = function in _reductions and len(rest) < 2 and options.keys() <= {"axis", "keepdims"}
            if function is np.mean and reduces and dtype in (np.float32, np.float64):
                return self.line(np.divide, (self.line(np.sum, args, options, like), x.size // max(size, 1)), {}, like)
            if function in _reshapes or (reduces and x.size == size):
                if x.function in _reductions and shape == _kept(x.args[0], x.options.get("axis")) != x.shape:
                    return self.new(x.function, x.args, x.options | {"keepdims": True}, like)
                inner = x.args[0] if x.function is _reshape else x
                function, args, options = _reshape, (inner if inner.like[1:] == like[1:] else x, shape), {}
            elif function in _transposes:
                axes = function(np.empty(range(x.ndim)), *rest, **options).shape
                if x.function is _transpose:
                    x, axes = x.args[0], tuple([x.args[1][a] for a in axes])
                if axes == (*range(x.ndim),):
                    return x
                function, args, options = _transpose, (x, axes), {}
            elif reduces:
                axes = _axes(x, options.get("axis", rest[0] if rest else None))
                axis = {} if len(axes) == x.ndim else {"axis": axes if len(axes) > 1 else axes[0]}
                args, options = (x,), axis | ({"keepdims": True} if len(shape) == x.ndim else {})
            x = args[0]
            if x.shape == shape and function in (_reshape, np.broadcast_to, np.positive, np.copy, _astype):
                return x
            same = function in (_reshape, _transpose, np.broadcast_to, op.getitem)
            if _is_full(x) and (same or (function is np.sum and reduces and x.size)):
                return full(x.args[1] if same else x.args[1] * (x.size / size))
        if function is np.where or (isinstance(function, np.ufunc) and function.signature is None):
            args = self.thinned(args, like)
        if function in _neutral and not options:
            numbers = [a.args[1] if _is_full(a) else a for a in args]
            if function is np.negative and x.function is np.negative:
                return x.args[0]
            if any(map(_is_full, args)) and not any(map(_is_line, numbers)):
                with np.errstate(all="ignore"):
                    return full(function(*numbers))
            for a, b in [args, args[::-1]][: 1 + (function is np.multiply)] if len(args) == 2 else ():
                if type(b) in _python and b == _neutral[function] and math.copysign(1, b) == 1 and a.like == like:
                    return a
                if function is np.power and type(b) is int and b == 0 and not like[2]:
                    return full(1)
                if _is_line(b) and b.function is np.negative and function in (np.add, np.subtract):
                    other = np.subtract if function is np.add else np.add
                    return self.line(other, (a, b.args[0]), {}, like)
                if type(b) in _python and b == -1 and function is np.multiply and a.like == like:
                    return self.new(np.negative, (a,), {}, like)
        return self.new(function, args, options, like)

    def thinned(self, args, like):
        """The arguments of an elementwise function, without what broadcasting does to them anyway."""
        args = [*args]
        for i, a in enumerate(args):
            others = [b for b in (*args[:i], *args[i + 1 :]) if _is_line(b)]
            while _is_line(a) and a.function in (np.full, np.broadcast_to, _reshape):
                thin, shapes = a.args[0], [b.shape or () for b in others]
                if _is_full(a):
                    thin = _number(a.args[1])
                    fits = any(b.like[1:] == a.like[1:] == like[1:] and not _is_full(b) for b in others)
                else:
                    fits = a.function is np.broadcast_to or thin.shape == a.shape[a.ndim - thin.ndim :]
                    fits = fits and thin.like[1:] == a.like[1:]
                    shapes.append(thin.shape)
                if not fits or np.broadcast_shapes(*shapes) != like[0]:
                    break
                args[i] = a = thin
        return tuple(args)

    def returned(self, x):
        """The line of a result: of a copy, where it may be an argument's memory, another result's or none at all."""
        line = self.line_of(x) if isinstance(x, Tensor) else self.fixed(x)
        if _is_line(line) and line.shape is not None:
            root = self.roots.get(line, line)
            if root is None or root.function is None or root in self.results or line.is_python:
                function = np.float64 if line.is_python and line.dtype == np.float64 else np.copy
                line = self.lines[object()] = _Line(function, (line,), {}, (*line.like[:2], False))
            self.results.add(root)
        return line

    # Printing

    def unique(self, name):
        """The name, with a number if it is taken."""
        name = unicodedata.normalize("NFKC", str.__str__(name))
        name = name if name.isidentifier() and not name.startswith("_") else "c"
        self.names[name] += 1
        return name if self.names[name] == 1 else self.unique(f"{name}_{self.names[name]}")

    def show(self, x, index=False):
        """The text of an argument, or of an index without its brackets."""
        if isinstance(x, (tuple, list, dict)):
            items = [self.show(item, index and type(item) is slice) for _, item in _items(x)]
            text = ", ".join(items) + "," * (len(items) == 1 and isinstance(x, tuple))
            if isinstance(x, dict):
                keys = [self.show(self.fixed(key)) for key in x]
                text = f"{{{', '.join(map('{}: {}'.format, keys, items))}}}"
            elif isinstance(x, list) or not ((index and items) or hasattr(x, "_fields")):
                text = f"[{text}]" if isinstance(x, list) else f"({text})"
            if isinstance(x, dict) and type(x) is not dict:
                return f"({self.show(self.bound(x))} | {text})"
            return text if type(x) in (tuple, list, dict) else f"{self.show(type(x))}({text})"
        if not _is_line(x):
            text = _literal(x)
            if text is not None:
                parts = [x.start, x.stop, x.step] if index and type(x) is slice else []
                return ":".join(["" if part is None else repr(part) for part in parts]).removesuffix(":") or text
            x = self.bound(x)
        if x not in self.texts:  # from outside
            self.texts[x] = self.unique(x.name or "c")
            self.parameters.append(x)
        return self.texts[x]

    def text(self, line):
        """The call of a line, in the texts of its arguments."""
        function, args, options, show = line.function, line.args, line.options, self.show
        of_python = all(a.is_python if _is_line(a) else type(a) in _python for a in args)
        symbol = _symbols.get(function) if len(args) == 2 and not options else None
        if symbol and (not of_python or symbol in "+-*"):  # elsewhere Python's numbers do not do as NumPy's
            return f"({show(args[0])} {symbol} {show(args[1])})"
        if function is np.negative:
            return f"(-{show(args[0])})"
        if function is op.getitem:
            return f"{show(args[0])}[{show(args[1], True)}]"
        if function in (np.full, _add_at):
            c = args[1].item() if function is np.full else 0.0
            if function is np.full and not line.shape:
                return f"{show(line.dtype)}({show(c)})"
            kind = "" if line.dtype == np.float64 else f", {show(line.dtype)}"
            known = {"0.0": "zeros", "1.0": "ones"}.get(repr(c))
            return f"np.{known}({line.shape}{kind})" if known else f"np.full({line.shape}, {show(c)}{kind})"
        if function is _transpose and args[1] == (*reversed(range(line.ndim)),):
            return f"{show(args[0])}.T"
        is_method = function in _methods and args and _is_line(args[0]) and not args[0].is_python
        rest = ", ".join(
            [show(a) for a in args[bool(is_method) :]] + [f"{key}={show(a)}" for key, a in options.items()]
        )
        if function is _reshape:
            rest = ", ".join(map(show, args[1])) or "()"
        if is_method:
            return f"{show(args[0])}.{function.__name__.lstrip('_')}({rest})"
        is_float = line.is_python and line.dtype == np.float64
        return f"float({show(function)}({rest}))" if is_float else f"{show(function)}({rest})"

    def body(self, out):
        """The statements that compute the lines of a structure."""
        needed = collections.Counter([line for line in _leaves(out) if _is_line(line)])
        waiting = [*needed]
        while waiting:
            line = waiting.pop()
            inputs = [x for x in _leaves((line.args, line.options)) if _is_line(x)]
            waiting += [x for x in dict.fromkeys(inputs) if x not in needed]
            needed.update(inputs)
        statements, backward, shared = [], False, collections.Counter([line.name for line in self.paths])
        for line in self.lines.values():
            if line not in needed:
                self.texts[line] = self.unique(line.name) if line.name else "..."
                continue
            of, by = [self.texts.get(x, "...") for x in line.step or (line, line)]
            is_slope = bool(line.step) and {*self.slopes[line.step].values()} == {line}
            name = line.name if shared[line.name] < 2 else ""  # else of a loop
            name = name or self.paths.get(line) or (f"d{by}" if is_slope and by.isidentifier() else "")
            call, is_part = self.text(line), line.function is op.getitem and line.shape is None
            is_short = not name and needed[line] == 1 and len(call) <= 40 and line.function is not _add_at
            if is_part or is_short:
                self.texts[line] = call
                continue
            self.texts[line] = name = self.unique(name or "tg"[bool(line.step)])
            comment = "several arrays" if line.shape is None else str(line.shape)
            if line.step:
                of, by = [x if x.isidentifier() else f"({_plain(x)})" if 3 < len(x) < 40 else "..." for x in (of, by)]
                comment = f"{'part of ' * (not is_slope)}d {of} / d {by}, {comment}"
            if bool(line.step) != backward:
                backward = not backward
                statements += ["", "# Backward"] if backward else [""]
            statements.append(f"{name} = {_plain(call)}  # {comment}")
            if line.function is _add_at:
                values, index = _plain(self.show(line.args[0])), self.show(line.args[1], True)
                at = f"np.add.at({name}, {index if _is_line(line.args[1]) else f'np.s_[{index}]'}, {values})"
                statements.append(f"{name}[{index}] = {values}" if _is_basic(line.args[1]) else at)
        return statements


def _as_scalar(x):
    return x[()] if isinstance(x, np.ndarray) and not x.ndim else x


def _as_data(x):
    return x.__array__() if isinstance(x, np.generic) else x


def _is_array(x):
    return hasattr(x, "__array__") and not isinstance(x, type)


def _argument(x):
    """An argument as generated functions take it: arrays as NumPy's, numbers as scalars, other things as they are."""
    return _as_scalar(_as_value(x.detach() if isinstance(x, Tensor) else x)) if _is_array(x) else x


def _signature(x):
    """What of an argument is taken as fixed, or None for what ``_argument`` would change."""
    if _is_array(x):
        return (x.shape or type(x), x.dtype) if type(x) is np.ndarray or isinstance(x, np.generic) else None
    if isinstance(x, (tuple, list, dict)):
        return type(x), *[(_kind(key), _signature(item)) for key, item in _items(x)]
    return float if type(x) is float else _kind(x)


def _kind(x):
    """What tells fixed things apart, also those that are equal but differ within."""
    if type(x) in _plain_types:
        return type(x), x
    what = f"jit() takes what is no array and no float as fixed, and a {type(x).__name__} may change"
    _check(isinstance(x, (Hashable, slice)), f"{what}: give it an array, or something that has a hash", TypeError)
    return type(x), repr(x), None if isinstance(x, slice) else x


_generated = itertools.count(1)


def _defined(name, statements, scope):
    """The function of this name that statements define; tracebacks and profilers find its lines in linecache."""
    text, file = "\n".join([*statements, ""]), f"<jit {name} {next(_generated)}>"
    exec(compile(text, file, "exec"), scope)
    linecache.cache[file] = len(text), None, text.splitlines(True), file
    weakref.finalize(scope[name], linecache.cache.pop, file, None)
    return scope[name]


_Generated = collections.namedtuple("_Generated", "text lower run")


def _generate(f, args, options):
    """What jit makes of f for arguments of one kind.

    ``text`` is a module; ``lower()`` is the function in it, given what that reads from outside. ``run(args, options)``
    does the same for arguments of this kind, with 0-d arrays for the numbers that it returns, or gives NotImplemented.
    """
    trace, n, names = _Trace(), len(args), []
    with contextlib.suppress(ValueError):  # of functions in C that do not tell their parameters
        names = [p.name for p in inspect.signature(f).parameters.values() if p.kind < p.VAR_POSITIONAL][:n]
    names += [*[f"args_{i}" for i in range(len(names), n)], *options]
    parameters, given = [*map(trace.unique, names)], (*args, *options.values())
    kinds = [*map(_signature, given)]
    traced = [*map(trace.enter, given, parameters)]
    around, _thread.trace = _thread.trace, trace
    _traces.append(trace)
    try:
        with _recording(True):
            out = _map(trace.returned, f(*traced[:n], **dict(zip(options, traced[n:], strict=True))))
        if trace.refused:
            raise trace.refused
    finally:
        _thread.trace = around
        _traces.remove(trace)

    # The module, and the function in it.
    statements, results = trace.body(out), out if type(out) is tuple and out else (out,)
    texts = [_plain(trace.show(x)) for x in results]
    arrays = [x for x in _leaves(out) if _is_line(x) and x.shape is not None]
    shapes = [str(x.shape) for x in arrays if not any(trace.texts[x].isidentifier() for x in arrays)]
    comma = "," * (len(results) == 1 and results is out)
    last = f"return {', '.join(texts)}{comma}" + (f"  # {', '.join(shapes)}" if shapes else "")
    outside, name = [trace.texts[line] for line in trace.parameters], str.__str__(getattr(f, "__name__", ""))
    name = unicodedata.normalize("NFKC", name)
    name = name if name.isidentifier() and name not in _reserved and name[0] != "_" else "function"
    seen = [f"{trace.texts[x]} {x.shape or ''}".strip() for x in trace.parameters]
    head = f"def {name}({', '.join([*parameters[:n], *outside, *parameters[n:]])}):"
    body = [
        f"    {line}".rstrip()
        for line in (f"# For {', '.join([*trace.facts, *seen]) or 'no arguments'}", *statements, last)
    ]
    module = ["import numpy as np", "", "", head, *body]

    # The function for all calls: checks of the arguments, and the same statements.
    scope = {"np": np, "_array": np.ndarray, "_map": _map, "_as_data": _as_data, "_signature": _signature}
    scope["_as_scalar"] = _as_scalar

    def bind(x):
        scope[name := f"_{len(scope)}"] = x
        return name

    values = [line.args[0] for line in trace.parameters]
    values = [f"_as_scalar({bind(x)}._value)" if isinstance(x, Tensor) else bind(x) for x in values]
    checks = []
    for p, x, kind in zip(parameters, given, kinds, strict=True):
        if isinstance(x, np.ndarray):
            checks.append(f"{p}.__class__ is _array and {p}.shape == {x.shape} and {p}.dtype == {bind(x.dtype)}")
        elif isinstance(x, np.generic):  # a 0-d array is one too
            checks.append(f"({p} := {p}[()] if {p}.__class__ is _array else {p}).__class__ is {bind(type(x))}")
        else:
            checks.append(f"{p}.__class__ is float" if type(x) is float else f"_signature({p}) == {bind(kind)}")
    for i, x in enumerate(results):
        if any(_is_line(part) and part.shape == () for part in _leaves(x)):
            texts[i] = f"({texts[i]}).__array__()" if _is_line(x) else f"_map(_as_data, {texts[i]})"
    run = [
        f"if len(_args) != {n} or {f'[*_options] != {bind([*options])}' if options else '_options'}:",
        "    return NotImplemented",
        f"{''.join([f'{p}, ' for p in parameters]) or '_'} = {'(*_args, *_options.values())' if options else '_args'}",
        f"if not ({' and '.join(checks) or True}):",
        "    return NotImplemented",
        *[f"{text} = {value}" for text, value in zip(outside, values, strict=True)],
        *statements,
        f"return {', '.join(texts)}{comma}",
    ]
    run = _defined(name, [f"def {name}(_args, _options):", *[f"    {line}" for line in run]], scope)

    @functools.cache
    def lower():
        function, call = _defined(name, module, {}), ", ".join([*parameters[:n], *values, *parameters[n:]])
        return eval(f"lambda {', '.join(parameters)}: _({call})", scope | {"_": function}) if values else function

    return _Generated("\n".join([*module, ""]), lower, run)


class _Key(tuple):
    """A signature that brings along the arguments that have it."""

    arguments: Any


def jit(f: Callable) -> Any:
    """A function that does what f does, by plain NumPy code that is generated when arguments of a new kind come.

    For that, f runs once on Tensors, and what NumPy has to do, for gradients that f takes too, becomes one function
    without ``if`` and loops. From then on that one runs: several times as fast as f where arrays are small.

    Parameters
    ----------
    f : a function of arrays, numbers, nested tuples, lists and dicts of such, and of things that have a hash.

    Returns
    -------
    A function of the same arguments that returns the same structure, with new arrays in place of Tensors, 0-d arrays
    for floats. It has three more:

    ``source(*args)`` : the text of a module with the generated function, which needs NumPy alone. Where a Python float
        becomes a number of NumPy's, that says ``np.float64(...)``.
    ``lower(*args)`` : the generated function itself, for arguments of the same kind, which it does not check. It takes
        and returns NumPy's scalars for numbers. Tensors and arrays from outside it has with it.
    ``cache_info()`` : as of ``functools.lru_cache``; the 128 kinds that were used last are kept.

    Notes
    -----
    A kind is a structure with the shapes and dtypes of its arrays and floats, and the values of everything else: of an
    int, bool, string or None. (``str`` of a Tensor tells its shape alone there.) Tensors from outside f are read at
    each call, so that steps of an optimizer are seen; which ones is fixed, as are arrays from outside and all that
    NumPy makes of such alone, random numbers too. No gradient flows through the result to Tensors from outside. Called
    with Tensors that require gradients, with arrays of another library, within another such function or
    ``detect_anomaly``, f itself runs.

    Raises
    ------
    TypeError : for what depends on values and would be fixed: ``if`` of a Tensor, ``float``, ``.item()``, ``.data``,
        ``np.asarray``, a mask as an index, ``backward()``. It says what to write instead. And for arguments without a
        hash.

    >>> square = jit(grad(lambda x: (x**3).sum()))
    >>> square(np.array([1.0, 2.0]))
    array([ 3., 12.])
    >>> print(jit(lambda x, y: x * y + 1).source(np.ones(2), 3.0))
    import numpy as np
    <BLANKLINE>
    <BLANKLINE>
    def function(x, y):
        # For x (2,), y ()
        return x * y + 1  # (2,)
    <BLANKLINE>
    """
    _check(callable(f), f"jit() takes a function, not {f!r}", TypeError)
    hits = 0

    @functools.lru_cache(128)
    def generated(key):
        return _generate(f, *key.__dict__.pop("arguments"))

    def latest(_args, _options):
        return NotImplemented

    def find(args, options):
        nonlocal latest
        args, options = _map(_argument, (args, options))
        key = _Key(_signature((args, options)))
        key.arguments = args, options
        entry = generated(key)
        latest = entry.run
        return entry, args, options

    @functools.wraps(f)
    def jitted(*args, **options):
        nonlocal hits
        if not _traces:
            out = latest(args, options)
            if out is not NotImplemented:
                hits += 1
                return out
        leaves = _leaves((args, options))
        if _thread.trace or (_thread.recording and any(isinstance(x, Tensor) and x._node for x in leaves)):
            return f(*args, **options)
        if _thread.recorder is _Node and not any(_is_foreign(_unwrapped(x)) for x in leaves):
            entry, *found = find(args, options)
            out = entry.run(*found)
            if out is not NotImplemented:
                return out
        return _map(lambda x: x.data if isinstance(x, Tensor) else x, f(*args, **options))

    def cache_info():
        info = generated.cache_info()
        return info._replace(hits=info.hits + hits)

    jitted.source = lambda *args, **options: find(args, options)[0].text  # type: ignore[attr-defined]
    jitted.lower = lambda *args, **options: find(args, options)[0].lower()  # type: ignore[attr-defined]
    jitted.cache_info = cache_info  # type: ignore[attr-defined]
    return jitted


# --- SGD --------------------------------------------------------------------------------------------------------------
# The optimizer replaces a parameter's value instead of writing into it: graphs recorded before keep what they saw.


class SGD:
    """Stochastic gradient descent, with the names and the update rule of ``torch.optim.SGD``.

    For each parameter p with gradient g (Sutskever et al., 2013, in PyTorch's variant): g += weight_decay * p; with
    momentum, v = momentum * v + g (v = g in the first step), and g = g + momentum * v with nesterov, else g = v;
    p -= lr * g. Parameters without a gradient are passed over.

    Parameters
    ----------
    params : the Tensors to train, leaves that require gradients.
    lr : the learning rate; ``optimizer.lr = 0.01`` changes it between steps, and so on for those that follow.
    momentum, weight_decay : how much of the step before is kept, and how strongly parameters are pulled to 0.
    nesterov : whether to look a step of momentum ahead.

    Raises
    ------
    ValueError : for no parameters, what is no such Tensor, or one twice; for rates that are negative or not finite, or
        ``nesterov`` without momentum. Later changes of the rates are not checked.

    >>> p = Tensor([1.0, 2.0], requires_grad=True)
    >>> optimizer = SGD([p], lr=0.1)
    >>> (p * p).sum().backward()
    >>> optimizer.step()
    >>> p.data
    array([0.8, 1.6])
    """

    def __init__(self, params: Iterable, lr: float, momentum: float = 0.0, weight_decay: float = 0.0, nesterov=False):
        _check(not isinstance(params, Tensor), "SGD takes a list of Tensors: write [w] for one of them")
        self.params: list[Tensor] = list(params)
        for i, p in enumerate(self.params):
            is_leaf = getattr(p, "_leaf", None) and p.requires_grad
            _check(is_leaf, f"SGD trains leaves that require gradients: parameter {i}, {type(p).__name__}, is not one")
        _check(0 < len(set(self.params)) == len(self.params), "SGD got no parameters, or one twice: give each once")
        for name, rate in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            fits = isinstance(rate, (int, float, np.number)) and 0 <= rate < math.inf
            _check(fits, f"SGD got {name}={rate!r}: it must be a finite number, 0 or more")
        _check(momentum or not nesterov, "SGD got nesterov=True without momentum: give it a momentum above 0")
        self.lr, self.momentum, self.weight_decay, self.nesterov = lr, momentum, weight_decay, nesterov
        self._velocities: list[Any] = [None] * len(self.params)

    def step(self) -> None:
        """Update every parameter from its ``.grad``; those whose ``.grad`` is None stay.

        >>> w = Tensor(1.0, requires_grad=True)
        >>> (w * w).backward()
        >>> SGD([w], lr=0.1).step()
        >>> w
        Tensor(0.8, requires_grad=True)
        """
        _check_untraced("step() of an optimizer")
        # Python floats, which leave the dtype of the parameters alone.
        lr, momentum, weight_decay = float(self.lr), float(self.momentum), float(self.weight_decay)
        for i, p in enumerate(self.params):
            g = p._leaf.grad
            if g is None or p._node is None:
                continue
            if isinstance(g, Tensor):
                g = g._value
            if weight_decay:
                g = g + weight_decay * p._value
            if momentum:
                velocity = self._velocities[i] = +g if (v := self._velocities[i]) is None else momentum * v + g
                g = g + momentum * velocity if self.nesterov else velocity
            p._value = p._value - lr * g

    def zero_grad(self) -> None:
        """Set every parameter's ``.grad`` to None, so that the next ``backward`` starts anew.

        >>> w = Tensor(1.0, requires_grad=True)
        >>> (w * w).backward()
        >>> SGD([w], lr=0.1).zero_grad()
        >>> w.grad is None
        True
        """
        _check_untraced("zero_grad() of an optimizer")
        for p in self.params:
            p._leaf.grad = None


# --- Tools ------------------------------------------------------------------------------------------------------------
# What looks at a computation from outside: whether its derivatives are right, where it went wrong, what it is made of.


def gradcheck(f: Callable, *args: Any, eps: float = 1e-6, atol: float = 1e-5, rtol: float = 1e-3) -> bool:
    """Compare the gradients of f with central differences, (f(x + eps) - f(x - eps)) / (2 eps), entry by entry.

    Parameters
    ----------
    f : a function that makes a Tensor out of Tensors.
    args : numbers, arrays or Tensors; floats are checked (in float64), anything else is handed on as it is.
    eps, atol, rtol : the step, and the absolute and relative difference that is allowed.

    Returns
    -------
    True. An f of several results is checked by a random, but always the same, weighted sum of them.

    Raises
    ------
    AssertionError : names the argument, the entry, and both numbers.
    TypeError : if no argument is one of floats.

    >>> gradcheck(lambda x, y: (x * y).tanh(), 0.5, [1.0, -2.0])
    True
    """
    arrays = [np.array(_unwrapped(arg)) for arg in args]
    floating = tuple([i for i, x in enumerate(arrays) if x.dtype.kind == "f"])
    _check(floating, "gradcheck got no float argument to check: integers and booleans have no gradient", TypeError)
    tensors = [Tensor(x.astype(float)) if x.dtype.kind == "f" else arg for x, arg in zip(arrays, args, strict=True)]

    def weighted_sum(*args):
        out = f(*args)
        return np.sum(out * np.random.default_rng(0).uniform(0.5, 1.5, np.shape(out)))

    for i, gradient in zip(floating, grad(weighted_sum, floating)(*tensors), strict=True):
        for entry in np.ndindex(gradient.shape):
            step = np.zeros_like(gradient)
            step[entry] = eps
            moved = [weighted_sum(*tensors[:i], tensors[i] + s, *tensors[i + 1 :]).item() for s in (step, -step)]
            found, difference = gradient[entry], (moved[0] - moved[1]) / (2 * eps)
            if not math.isclose(found, difference, rel_tol=rtol, abs_tol=atol):
                raise AssertionError(f"argument {i}, entry {entry}: backward {found}, central differences {difference}")
    return True


def _is_finite(*trees):
    """Whether no number in NumPy's arrays of floats is nan or infinite; other things are not looked at."""
    values = [_unwrapped(x) for x in _leaves(trees)]
    return all(np.isfinite(x).all() for x in values if isinstance(x, (float, np.floating, np.ndarray)))


def _user_line():
    """The newest line of the program that runs which is not of this file or of NumPy, as text."""
    frame, ours = sys._getframe(), (_user_line.__code__.co_filename, *np.__path__)
    while frame.f_back and frame.f_code.co_filename.startswith(ours):
        frame = frame.f_back
    file, number = frame.f_code.co_filename, frame.f_lineno
    return f"{file}, line {number}: {linecache.getline(file, number).strip()}".rstrip(": ")


def _anomaly(what, found, row, values, line):
    what += f"{_name(row.function)} of shape {_shapes(values)}"
    kind = "nan" if np.isnan(_unwrapped(found)).any() else "infinity"
    raise FloatingPointError(f"{what} made {kind} of finite numbers: see {line}")


class _WatchedNode(_Node):
    """A node that knows where in the user's program it was made, and that its operation made no nan and no infinity."""

    __slots__ = ("line",)

    def __init__(self, row, parents, values, out, options=None):
        self.line = _user_line()
        if not _is_finite(out) and _is_finite(values):
            _anomaly("", out, row, values, self.line)
        super().__init__(row, parents, values, out, options)

    def forget(self):
        """Nothing, as what was nan or infinite before is no anomaly."""


def _watch_gradient(node, i, g, gradient):
    """Look at what came to a parent of a node, under ``detect_anomaly``."""
    if not _is_finite(gradient) and _is_finite(g, node.values):
        line = getattr(node, "line", "a line outside detect_anomaly(): put the forward pass inside as well")
        _anomaly(f"the gradient with respect to argument {i} of ", gradient, node.row, node.values, line)


@contextlib.contextmanager
def detect_anomaly() -> Iterator[None]:
    """Raise where a recorded operation, or ``backward``, first makes nan or infinity: a context manager; per thread.

    It looks at the results of operations on Tensors that require gradients, and at the gradients, which takes time that
    nothing takes without it. A function under ``jit`` runs as it was written.

    Raises
    ------
    FloatingPointError : where finite numbers gave one that is not. It names the operation, the shapes, and the line of
        the program that called it, for a gradient too. What was nan or infinite before is handed on without a word
        if the forward pass is inside too.

    >>> w = Tensor([1.0, 0.0], requires_grad=True)
    >>> with detect_anomaly():
    ...     np.sqrt(w).sum().backward()
    Traceback (most recent call last):
        ...
    FloatingPointError: the gradient with respect to argument 0 of np.sqrt of shape (2,) made infinity of finite ...
    """
    _check_untraced("what detect_anomaly() looks at")
    before = _thread.recorder, _thread.recording
    _thread.recorder = _WatchedNode
    _traces.append(None)  # so that functions under jit look whether they may run what they generated
    try:
        with _recording(bool(_thread.recording)):
            yield
    finally:
        _traces.remove(None)
        _thread.recorder, _thread.recording = before


class _Everything(dict):
    """Gradients of which ``_backward`` shall drop none."""

    pop = dict.__getitem__  # type: ignore[assignment]


def to_dot(t: Tensor, names: dict[str, Any] | None = None) -> str:
    """The graph behind a Tensor as text for Graphviz, for ``dot -Tsvg`` or ``graphviz.Source(text)`` in a notebook.

    Parameters
    ----------
    t : the result. Its operations are boxes with their shapes and dtypes, and values where these are few; leaves stand
        out, and constants are without a frame.
    names : what to call leaves and constant arrays, ``{"w": w, "x": x}``.

    Raises
    ------
    TypeError : for what is no Tensor, and for names that are no such dict.

    Notes
    -----
    After ``t.backward()`` leaves show their ``.grad`` and, if t is one number, operations its gradient with respect to
    them. Of a graph of more than 500 nodes the newest are shown, and one more that says how many are left out.

    >>> w = Tensor(3.0, requires_grad=True)
    >>> print(to_dot(w * 2, names={"w": w}))
    digraph {
      node [shape=box, fontname=monospace]
      n0 [label="np.multiply\\n() float64\\n6."]
      n1 -> n0
      c0 [label="2", shape=plain]
      c0 -> n0
      n1 [label="w\\n() float64\\n3.", style=filled, fillcolor=lightblue]
    }
    """
    _check(isinstance(t, Tensor), f"to_dot() takes a Tensor, not {type(t).__name__}: give it the result", TypeError)
    named = names is None or (isinstance(names, dict) and all(isinstance(name, str) for name in names))
    _check(named, f"to_dot() takes names as a dict from str, {{'w': w}}, not {names!r}", TypeError)
    root = t._node or _Leaf()
    values, stack = {root: t._value}, [root]
    while stack:
        node = stack.pop()
        found = {
            parent: x for parent, x in zip(node.parents, node.values, strict=False) if parent and parent not in values
        }
        values |= found
        stack += found
    shown = {node: f"n{i}" for i, node in enumerate(sorted(values, key=op.attrgetter("order"))[:500])}
    called = {id(x._node if isinstance(x, Tensor) and x._node else _unwrapped(x)): n for n, x in (names or {}).items()}
    gradients = _Everything()
    if root.row and t.size == 1 and any(node.grad is not None for node in values if not node.row):
        gradients[root] = _one(_as_array(t._value))
        _backward(gradients, False)

    def kind(x):
        return f"{x.shape} {x.dtype}" if hasattr(x, "shape") else ""

    def number(x):
        if isinstance(x, (np.ndarray, np.generic)):
            return np.array2string(np.asarray(x), precision=4, separator=", ") if x.size <= 12 else ""
        return "" if hasattr(x, "shape") else repr(x)

    def line(name, style, *label):
        text = "\n".join([part for part in label if part])
        for plain, escaped in (("\\", r"\\"), ('"', r"\""), ("\n", r"\n")):
            text = text.replace(plain, escaped)
        return f'  {name} [label="{text}"{style}]'

    lines = ["digraph {", "  node [shape=box, fontname=monospace]"]
    constants: dict[int, str] = {}
    for node, name in shown.items():
        x = _as_array(values[node])
        if node.row:
            g, what, style = gradients.get(node), _name(node.row.function), ""
            what += "".join([f" {option}={value!r}" for option, value in sorted((node.options or {}).items())])
        else:
            g, style = _unwrapped(node.grad), ", style=filled, fillcolor=lightblue" * t.requires_grad
            what = called.get(id(node), "leaf" if t.requires_grad else "constant")
        g = np.broadcast_to(g, x.shape) if isinstance(g, (np.ndarray, np.generic)) else g
        slope = "" if g is None else number(g)
        lines.append(line(name, style, what, kind(x), number(x), slope and f"gradient {slope}"))
        for parent, x in zip(node.parents, node.values, strict=False):
            if parent is None:
                key = id(x) if hasattr(x, "shape") else len(constants)
                if key not in constants:
                    constants[key] = f"c{len(constants)}"
                    lines.append(line(constants[key], ", shape=plain", called.get(id(x), ""), kind(x), number(x)))
            lines.append(f"  {shown.get(parent, 'rest') if parent else constants[key]} -> {name}")
    if len(values) > len(shown):
        lines.append(line("rest", ", shape=plain", f"{len(values) - len(shown):,} more nodes"))
    return "\n".join([*lines, "}"])
