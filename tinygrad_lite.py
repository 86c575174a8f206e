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

The file in reading order. The heart: recording (what an operation leaves behind), Tensor, the first rules, backward,
SGD. It is the whole idea, and would run alone. The layers, which it does not know: NumPy's functions, gradients of
functions, tools, jit. Each uses what stands above it, and what stands above needs none of it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import operator as op
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

__all__ = ["SGD", "Tensor", "defvjp", "detect_anomaly", "grad", "gradcheck", "hessian", "jacobian", "jit", "jvp"]
__all__ += ["no_grad", "relu", "sigmoid", "to_dot", "value_and_grad"]
__version__ = "0.1.0"


# --- Recording --------------------------------------------------------------------------------------------------------
# An operation on Tensors runs on their plain values and leaves a node behind: which rule, on what, and whose gradients
# it can pass on. Nodes point to their parents, never back, so that a graph is freed with its last Tensor.
# (A Tensor, the class of the next section, is a value and its node, or None for a constant.)

# A node is a tuple (order, row of the table, parents, values, out, options). The newest has the smallest order, so that
# a heap of nodes gives it first. The parents are the nodes of the arguments, None for those that require no gradient.
# The values and the result are those that the operation saw: what an optimizer does to a leaf later changes none of
# them. A leaf's node is (order, None, [gradient]): it has no row, and its gradient comes together in that list.

_Anything: Any = object  # a base to type checkers, as later sections add methods to Tensor
_new, _float64, _ndarray = object.__new__, np.float64, np.ndarray  # looked up once, as every operation needs them
_next_order = itertools.count(0, -1).__next__
_python = {bool, int, float}
_local = {_ndarray, _float64, np.float32}
_plain = {*_local, *_python}  # what a quick way takes and gives without a look
_LARGE = 10_000  # elements: a larger array is forgotten if no rule will read it


class _Thread(threading.local):
    recording = True
    observer: Any = None  # is told of results, of gradients, and of what Python looks at


_thread = _Thread()
_detours: list[Any] = []  # of all threads, an entry for each no_grad and each observer: empty for quick ways
_lock = threading.RLock()  # for what threads have in common


def _check(ok, message, error=ValueError):
    if not ok:
        raise error(message)


def _seen(tensor, what):
    """The Tensor that Python is about to look at or to change, or what an observer gives in its place."""
    return _thread.observer.seen(tensor, what) if _detours and _thread.observer is not None else tensor


@contextlib.contextmanager
def _set(name: str, value: Any) -> Iterator[Any]:
    """Set ``recording`` or the ``observer`` of this thread for a while."""
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, _thread, name, getattr(_thread, name))
        setattr(_thread, name, value)
        _detours.append(None)
        stack.callback(_detours.pop)
        yield value


def no_grad() -> contextlib.AbstractContextManager[None]:
    """Record nothing within: a context manager, or a decorator when called (``@no_grad()``); per thread.

    It is not for generator functions: around a ``yield`` it would hold for the caller too.

    >>> w = Tensor(3.0, requires_grad=True)
    >>> with no_grad():
    ...     print((w * 2).requires_grad)
    False
    """
    return _set("recording", False)


def _name(function):
    function = getattr(function, "func", function)  # of a partial function
    name = getattr(function, "__name__", repr(function)).lstrip("_")
    module = getattr(function, "__module__", None) or "numpy" * hasattr(np, name)  # which ufuncs do not tell
    return f"{module}.{name}".lstrip(".").replace("numpy.", "np.", 1)


def _as_value(data):
    """What a Tensor holds: an array or NumPy scalar of booleans, integers or floats.

    Arrays of other kinds are kept as they are if they answer NumPy's protocols.
    """
    is_array = hasattr(type(data), "__array_function__") and hasattr(type(data), "__array_ufunc__")
    # Only a subclass is asked, because NumPy imports its ma when somebody names it.
    if isinstance(data, np.ndarray) and type(data) is not np.ndarray:
        what = "a Tensor has no mask and multiplies elementwise: give data.filled(value), or np.asarray(matrix) and @"
        _check(not isinstance(data, (np.ma.MaskedArray, np.matrix)), what, TypeError)
    value = data if is_array and not isinstance(data, (np.ndarray, Tensor)) else np.asarray(data)
    if value.dtype.kind not in "biuf":
        advice = "use .real and .imag" if value.dtype.kind == "c" else "convert it first, with data.astype(float) say"
        what = "None: is a value or a return missing?" if data is None else f"data of dtype {value.dtype}: {advice}"
        raise TypeError(f"a Tensor holds booleans, integers or floats, not {what}")
    return value if is_array or value.ndim else value[()]


def _as_array(value):
    """A value that has a shape and a dtype: a Python number, which takes the dtype of what it meets, as NumPy's."""
    return np.asarray(value)[()] if value.__class__ in _python else value


def _wrap(value, node):
    """A Tensor from within: of a value that is known to be one, or of an observer's Tensor, and a node or None."""
    if isinstance(value, Tensor):
        return value._at(node)
    tensor = _new(Tensor)
    tensor._value, tensor._node = value, node
    return tensor


_operands = int, float, complex, list, tuple, range  # of arithmetic, beside Tensors and arrays


class _Row:
    """A row of the table: a function, and its vector-Jacobian products (VJPs, see the rules), one for each argument.

    Without VJPs its results are constants. ``compute`` is the quickest way to the value; ``quick`` is the quickest way
    to a Tensor, for calls of ``arity`` arguments without options. ``kind`` says which gradients may be smaller than
    the arrays that they belong to (see backward). The VJPs of a ``linear`` row are given g alone: so many arguments
    cost as much each as few.
    """

    def __init__(self, function, vjps=(), linear=False):
        self.function, self.compute, self.linear = function, function, linear
        self.define(vjps)

    def define(self, vjps, kind=""):
        self.vjps, self.kind = vjps if any(vjps) else (), kind
        self.arity = len(vjps) if all(vjps) else 0
        self.quick = (_binary if self.arity == 2 else _unary)(self, self.compute, self.compute)

    def call(self, compute, args, options):
        """The result of a call: every operation that is not as usual comes here."""
        if isinstance(self.function, np.ufunc):
            if not all([isinstance(x, (Tensor, *_operands)) or hasattr(x, "__array__") for x in args]):
                return NotImplemented
            args = [x if isinstance(x, (Tensor, int, float)) else _as_value(x) for x in args]
        nodes = tuple([x._node if isinstance(x, Tensor) and _thread.recording else None for x in args])
        for i, node in enumerate(nodes if self.vjps else ()):
            if node and (i >= len(self.vjps) or self.vjps[i] is None):
                raise TypeError(f"{_name(self.function)} has no derivative rule for argument {i}: detach() a constant")
        order, observer, (values, named) = _next_order(), _thread.observer, self.plain(args, options)
        observed = None if observer is None else observer.compute(self, order, compute, args, options, values, named)
        values, out = observed or (values, compute(*values, **named))
        return self.result(order, nodes, values, out, named)

    def plain(self, args, options):
        """The arguments as NumPy takes them."""
        return tuple([x._value if isinstance(x, Tensor) else x for x in args]), options

    def result(self, order, nodes, values, out, options=None):
        """The Tensor of a result, with a node if an argument has one and the result is of floats."""
        out = out if out.__class__ is float or isinstance(out, Tensor) else _as_value(out)
        recorded = self.vjps and any(nodes) and (out.__class__ is float or out.dtype.kind == "f")
        return _wrap(out, (order, self, nodes, values, out, options) if recorded else None)


_table: dict[Callable, _Row] = {}


def _row(function, make=_Row):
    return _table.get(function) or _table.setdefault(function, make(function))


def _unary(row: _Row, compute: Callable, careful: Callable) -> Callable:
    """The quick way from one operand to a Tensor; all that is not as usual goes by ``careful`` and ``row.call``."""

    def quick(x):
        if _detours or x.__class__ is not Tensor or (value := x._value).__class__ not in _local:
            return row.call(careful, (x,), {})
        node, out = x._node, compute(value)
        if out.__class__ in _plain and (value.__class__ is not _ndarray or value.size < _LARGE):
            tensor = _new(Tensor)
            tensor._value = out
            tensor._node = (_next_order(), row, (node,), (value,), out, None) if node else None
            return tensor
        return row.result(_next_order(), (node,), (value,), out)

    return quick


def _binary(row: _Row, compute: Callable, careful: Callable) -> Callable:
    """The same from two operands."""

    def quick(x, y):
        left, a = (x._node, x._value) if x.__class__ is Tensor else (None, x)
        right, b = (y._node, y._value) if y.__class__ is Tensor else (None, y)
        try:
            out: Any = compute(a, b) if not _detours and a.__class__ in _plain and b.__class__ in _plain else None
        except Exception:
            out = None  # once more then, for an error that names the operation
        kind = out.__class__
        if row.arity != 2 or not (kind is _float64 or (kind is _ndarray and out.dtype.kind == "f")):
            return row.call(careful, (x, y), {})
        if kind is _ndarray and out.size >= _LARGE:
            return row.result(_next_order(), (left, right), (a, b), out)
        tensor = _new(Tensor)
        tensor._value = out
        tensor._node = (_next_order(), row, (left, right), (a, b), out, None) if left or right else None
        return tensor

    return quick


def _apply(function, args, options):
    """Call a function of the table."""
    row = _table.get(function)
    if row is None:
        what = "{0} has no derivative rule: add one with defvjp({0}, ...), or give it t.data where gradients may end"
        raise TypeError(what.format(_name(function)))
    return row.call(row.compute, args, options) if options or not len(args) == row.arity < 3 else row.quick(*args)


def _operator(function, compute) -> tuple[Callable[[Any, Any], Tensor], Callable[[Any, Any], Tensor]]:
    """The two methods ``x op y`` and ``y op x`` of Tensor.

    Python's own operator computes the value: on NumPy scalars it is many times faster than the ufunc.
    """

    def careful(x, y):  # of a Python float and Python's numbers with NumPy's arithmetic, but to a Python float again
        is_weak = x.__class__ in _python and y.__class__ in _python and float in (x.__class__, y.__class__)
        out = compute(_float64(x) if is_weak else x, y)
        return float(out) if is_weak and out.__class__ is _float64 else out

    forward = _binary(_row(function), compute, careful)
    return forward, lambda y, x: forward(x, y)


def _method(function) -> Callable[..., Tensor]:
    """A function of the table as a method of Tensor."""

    def method(self, *args, **options):
        return _apply(function, (self, *args), options)

    method.__doc__ = f"``{_name(function)}`` of this Tensor, with the arguments that follow the array there."
    return method


def _relu(x):
    """max(x, 0) of each element, in its dtype, with a gradient of 0 at 0.

    >>> relu(Tensor([-1.0, 2.0]))
    Tensor([0., 2.])
    """
    return np.maximum(x, 0)


# --- Tensor -----------------------------------------------------------------------------------------------------------
# Numbers and arrays alike. A number is kept as a NumPy scalar, with which arithmetic is fast, until somebody looks at
# ``.data``: from then on it is the 0-d array that was handed out, so that a change in place is seen.


class Tensor(_Anything):
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
    >>> t.shape, t.detach().T[0], t.mean().item()
    ((2, 2), Tensor([1., 3.]), 2.5)
    """

    __slots__ = ("__weakref__", "_leaf", "_node", "_value")
    __array_priority__ = __pandas_priority__ = 5000  # array * Tensor and Series * Tensor are the Tensor's business

    def __init__(self, data: Any, requires_grad: bool = False, dtype: Any = None):
        self._value = _as_value(data if dtype is None else _as_value(data).astype(dtype, copy=False))
        self._node: Any = None  # None for a constant
        self.requires_grad = requires_grad

    def _at(self, node):
        """The same value in another place of the graph."""
        return _wrap(self._value, node)

    def _fitted(self, given, what, is_open=False, **casting):
        """What the user gives for this Tensor: of its shape, and cast to its dtype. If open, a Tensor stays one."""
        value = given if is_open and isinstance(given, Tensor) else _as_value(given)
        _check(value.shape == self.shape, f"{what} must have the shape {self.shape} of the Tensor, not {value.shape}")
        return value.astype(self.dtype, **casting)

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
        _seen(self, "reading .data")
        if isinstance(self._value, np.generic):
            self._value = np.asarray(self._value)
        return self._value if self._value.__class__ is not float else np.asarray(self._value)

    @data.setter
    def data(self, data: Any) -> None:
        _seen(self, "setting .data")
        self._value = self._fitted(data, ".data", casting="same_kind", copy=False)

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
        _check(self._node is None or self._node[1] is None, "requires_grad of a result is fixed: .detach() cuts it off")
        _check(required in (True, False), f"requires_grad is True or False, not {required!r}: write dtype= for a dtype")
        if required:
            _check(self.dtype.kind == "f", f"{self.dtype} data cannot require gradients: give dtype=float", TypeError)
            # Of a leaf its node, also while requires_grad is switched off.
            self._leaf: Any = getattr(self, "_leaf", None) or (_next_order(), None, [None])
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
        node = _seen(self, "reading .grad")._node
        kept = node[2] if node and node[1] is None else [None]
        if isinstance(kept[0], np.generic):
            kept[0] = np.asarray(kept[0])
        return kept[0]

    @grad.setter
    def grad(self, gradient: Any) -> None:
        leaf = getattr(_seen(self, "setting .grad"), "_leaf", None) or (0, None, [None])  # or a stand-in
        if gradient is not None:
            _check(self._node is leaf, ".grad can be set on leaves that require gradients only")
            gradient = self._fitted(gradient, ".grad", getattr(gradient, "requires_grad", False))
        leaf[2][0] = gradient

    shape = property(lambda self: _as_array(self._value).shape, doc="The lengths of the axes, () for a number.")
    ndim = property(lambda self: _as_array(self._value).ndim, doc="The number of axes, 0 for a number.")
    size = property(lambda self: _as_array(self._value).size, doc="The number of elements, 1 for a number.")
    dtype = property(lambda self: _as_array(self._value).dtype, doc="NumPy's dtype of the elements.")

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
        _seen(self, "backward() (for which there are grad() and value_and_grad())")
        _check(self._node, "backward() of what requires no gradient: give a leaf requires_grad=True (w -= 1 undoes it)")
        if create_graph and not _thread.recording:
            return _set("recording", True)(self.backward)(gradient, create_graph)
        value = _as_array(self._value)
        if gradient is None and value.size != 1:
            raise ValueError(f"backward() of shape {value.shape} needs a gradient: .sum() it first, or give one")
        g = _one(value) if gradient is None else self._fitted(gradient, "the gradient of backward()", create_graph)
        g = _wrap(g, None) if create_graph and not isinstance(g, Tensor) else g
        gradients, leaves = _backward(self._node, g, create_graph)
        with _lock:  # only now, so that an error on the way leaves every gradient as it was
            for order, _, leaf in leaves:
                leaf[0] = _own(gradients, order) if leaf[0] is None else leaf[0] + _own(gradients, order)
        return None

    def detach(self) -> Tensor:
        """A Tensor of the same data, of the same array if it has axes, that requires no gradient.

        >>> w = Tensor(2.0, requires_grad=True)
        >>> (w * w.detach()).backward()
        >>> w.grad
        array(2.)
        """
        return _seen(self, "detach()")._at(None)

    def item(self) -> Any:
        """The one element, as a Python number; ValueError if there are more.

        >>> Tensor([[2.5]]).item()
        2.5
        """
        return np.asarray(_seen(self, "a Python number")._value).item()

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if method != "__call__" or options:
            call = f"{_name(ufunc)}.{method}".removesuffix(".__call__") + "".join([f" with {o}=" for o in options])
            raise TypeError(f"{call} takes no Tensor: write a = a + t for a += t, y = np.add(x, t), np.where or np.sum")
        return _apply(ufunc, inputs, {})

    def __array_function__(self, function, types, args, options):
        return _apply(function, args, options)

    # Operators and methods, each a function of the table.

    (__add__, __radd__), (__sub__, __rsub__) = _operator(np.add, op.add), _operator(np.subtract, op.sub)
    (__mul__, __rmul__), (__truediv__, __rtruediv__) = _operator(np.multiply, op.mul), _operator(np.divide, op.truediv)
    (__pow__, __rpow__), (__matmul__, __rmatmul__) = _operator(np.power, op.pow), _operator(np.matmul, np.matmul)
    __neg__, __pos__ = _unary(_row(np.negative), op.neg, op.neg), _unary(_row(np.positive), op.pos, op.pos)
    __abs__ = _unary(_row(np.absolute), abs, abs)

    exp, log, tanh, sum, mean, relu = map(_method, (np.exp, np.log, np.tanh, np.sum, np.mean, _relu))


# --- Rules ------------------------------------------------------------------------------------------------------------
# A rule has one vector-Jacobian product (VJP) per argument: from g, the gradient of some number with respect to the
# result, it makes the gradient with respect to that argument. What broadcasting stretched, backward sums down again.
# Handed Tensors instead of arrays, a rule records a graph of its own: so second derivatives come.


def _spread(g, _out, _a, axis=None, *, keepdims=False, where=True, initial=0):
    """The gradient of a sum goes to every element alike, as broadcasting will do."""
    g = _whole(g, _out) if g.ndim and g.shape != _out.shape else g
    g = np.expand_dims(g, axis) if 0 < g.ndim < _a.ndim else g
    return g if where is True else np.where(where, g, 0)


def _mean_vjp(g, _out, _a, axis=None, *, keepdims=False, where=True):
    n = None if where is True else np.broadcast_to(where, _a.shape).sum(axis, keepdims=keepdims)
    g = g * (_out.size / (_a.size or 1)) if n is None else (g / n).astype(g.dtype)
    return _spread(g, _out, _a, axis, where=where)


def _power_less(x, y):
    """x**(y - 1), but x**0 where x and y are 0: so that y * x**(y - 1), the derivative of x**y, is 0 there too."""
    if not isinstance(y, (int, float)):  # from integers a float is taken, as 0 - 1 of unsigned ones is their largest
        return x ** np.where((x == 0) & (y == 0), 0, y - _as_array(x).dtype.type(1))
    less = y - (y != 0)
    return x if less == 1 and not isinstance(x, Tensor) else np.power(x, less) if x.__class__ is float else x**less


def _log_of(x, y, out):
    """log(x) in the dtype of out = x**y, for d(out)/dy = out * log(x); 0 where x is 0 and out stays 0 or 1 beside y."""
    b: Any = x.astype(out.dtype) if hasattr(x, "astype") else _as_array(out).dtype.type(x)
    return np.log(b if isinstance(b, (_ndarray, np.generic)) and b.all() else np.where((b == 0) & (y >= 0), 1, b))


def _mT(x):
    return x.T if x.ndim == 2 else x.swapaxes(-1, -2)


def _matmul_vjp_x(g, _out, _x, y):
    if y.ndim == 1:
        return g[..., None] * y
    return (y @ g[..., None])[..., 0] if _x.ndim == 1 else g @ _mT(y)


def _matmul_vjp_y(g, _out, x, _y):
    if x.ndim == 1:
        return x[:, None] * g[..., None, :] if _y.ndim > 1 else g * x
    return _mT(x) @ g if _y.ndim > 1 or g.ndim == 1 else (_mT(x) @ g[..., None])[..., 0]


def _whole(g, _like):
    """g, which broadcasts to the shape of an array, in that shape, and of the dtype and the kind of that array."""
    if isinstance(g, Tensor) or isinstance(_like, Tensor):
        return _apply(_whole, (g, _like._at(None) if isinstance(_like, Tensor) else _like), {})
    g = np.zeros_like(_like) + g if hasattr(_like, "__array_function__") and not isinstance(_like, np.ndarray) else g
    if not isinstance(g, (np.ndarray, np.generic)):
        return np.broadcast_to(g, _like.shape).astype(_like.dtype)
    _like = _as_array(_like)
    whole = np.empty(_like.shape, _like.dtype)
    whole[...] = g
    return whole if whole.ndim else whole[()]


# fmt: off
for kind, rules in {
    "elementwise": {
        np.add:      (lambda g, _, _x, _y: g,                        lambda g, _, _x, _y: g),
        np.subtract: (lambda g, _, _x, _y: g,                        lambda g, _, _x, _y: -g),
        np.multiply: (lambda g, _, _x, y: g * y,                     lambda g, _, x, _y: g * x),
        np.divide:   (lambda g, _, _x, y: g / y,                     lambda g, out, _x, y: -g * out / y),
        np.power:    (lambda g, _, x, y: g * y * _power_less(x, y),  lambda g, out, x, y: g * out * _log_of(x, y, out)),
        np.where:    (None, lambda g, _, c, _x, _y: np.where(c, g, 0), lambda g, _, c, _x, _y: np.where(c, 0, g)),
        np.negative: (lambda g, _, _x: -g,),                         np.positive: (lambda g, _, _x: g,),
        np.exp:      (lambda g, out, _x: g * out,),                  np.log: (lambda g, _, x: g / x,),
        np.absolute: (lambda g, _, x: g * np.sign(x),),              np.tanh: (lambda g, y, _x: g * (1 - y * y),),
        _relu: (lambda g, out, _x: np.where(out <= 0, 0, g),)},
    "reduction": {np.sum: (_spread,), np.mean: (_mean_vjp,)},
    "": {np.matmul: (_matmul_vjp_x, _matmul_vjp_y), _whole: (lambda g, _, _g, _like: g, None)},
}.items():
    for function, vjps in rules.items():  # type: ignore[attr-defined]
        _row(function).define(vjps, kind)
# fmt: on


# --- Backward ---------------------------------------------------------------------------------------------------------
# Nodes are taken newest first: parents are older than their children, so that all of a node's gradient has arrived when
# its turn comes. The running gradients live in a dict of this one call and leave it as soon as they have been used.
# On the way a gradient may be smaller than the array that it belongs to, one number perhaps, where broadcasting makes
# up for the rest: elementwise rules and sums pass it on as it is, for the others it is made whole.


def _backward(root, g, create_graph=False, stop=1):
    """From the gradient g of a node those that come of it: a dict by the order of nodes, and a list of the leaves.

    The first holds the gradients of the leaves and, with ``stop``, the order of a node, of all that is not newer than
    that one (of older nodes no more than came before its own was complete).
    """
    gradients, observer = {root[0]: g}, _thread.observer if _detours else None
    ahead, leaves = ([root], []) if root[1] else ([], [root])  # heaps, of which leaves are only collected
    while ahead and ahead[0][0] < stop:
        order, row, parents, values, out, options = node = heappop(ahead)
        g, vjps = gradients.pop(order), row.vjps
        g = g if hasattr(g, "size") else +g  # + makes an array of parts that are yet to be added up
        if create_graph:  # the saved values, linked to their places in the graph
            out = _wrap(out, node)
            values = [v if p is None else _wrap(v, p) for v, p in zip(values, parents, strict=True)]
        for i, parent in enumerate(parents):
            if parent is None:
                continue
            x = values[i]
            if options is None and len(values) == 2:  # the most frequent, and in this form the fastest
                part = vjps[i](g, out, values[0], values[1])
            else:
                part = vjps[i](g) if row.linear else vjps[i](g, out, *values, **(options or {}))
            if not part.__class__ is x.__class__ is out.__class__ is _float64:
                part = _fit(part, x, out, row, parent[1])
            order = parent[0]
            if order in gradients:
                part = gradients[order] + part
            else:
                heappush(ahead if parent[1] else leaves, parent)
            gradients[order] = part
            if observer is not None:
                observer.gradient(root, node, i, g, part)
    return gradients, leaves


def _one(x):
    """The gradient that a way back begins with: 1, for a number as one of NumPy's numbers."""
    return x.dtype.type(1) if isinstance(x, (np.generic, np.ndarray)) and not x.ndim else np.ones_like(x)


def _fit(g, x, out, row, to):
    """A gradient in the dtype and shape of the x that it belongs to: summed over the axes that broadcasting made.

    ``to`` is the row that it goes to next, None for a leaf.
    """
    if g.__class__ is x.__class__ is _ndarray and g.dtype is x.dtype:  # the two most frequent cases
        shape, whole = x.shape, g.shape
        if whole == shape and (not row.kind or shape == out.shape):
            return g
        if whole == out.shape and whole[1:] == shape and row.kind == "elementwise":
            return g.sum(axis=0)
    x, out = _as_array(x), _as_array(out)
    if not hasattr(g, "dtype") or g.dtype.kind not in "biuf":
        raise TypeError(f"a rule of {_name(row.function)} returned {type(g).__name__} {getattr(g, 'dtype', g)}")
    shape, stretched = x.shape, out.shape if row.kind == "elementwise" else x.shape if row.kind else g.shape
    if shape != stretched:
        g = g if g.shape == stretched else _whole(g, out)
        new = g.ndim - len(shape)
        axes = [axis for axis, n in enumerate(shape, new) if new >= 0 and n != g.shape[axis]]
        if new < 0 or g.shape[:new] != out.shape[:new] or any([shape[axis - new] != 1 for axis in axes]):
            raise ValueError(f"a rule of {_name(row.function)} returned shape {g.shape} for an argument of {shape}")
        g = g.sum((*range(new), *axes), keepdims=not new).reshape(shape)
    is_whole = g.shape == shape or (to and to.kind and x.size)  # a number is more than an array of nothing
    is_like = type(g) is type(x) or isinstance(x, (np.ndarray, Tensor)) or not hasattr(x, "__array_function__")
    return g if is_whole and is_like and g.dtype == x.dtype else _whole(g, x)


# So many references has an array, and so many that of which it is a view, where nobody else has them.
_unshared: Any = (lambda g: (sys.getrefcount(g), sys.getrefcount(g.base)))(np.ones(2)[:])


def _own(gradients, order):
    """A gradient out of a dict, as an array that nobody else has: copied if somebody may."""
    g = gradients.pop(order)
    if g.__class__ is not _ndarray or not g.flags.writeable or sys.getrefcount(g) != _unshared[0]:
        return +g
    is_whole = g.base.__class__ is _ndarray and g.base.size <= 2 * g.size and g.base.flags.owndata
    return g if g.base is None or (is_whole and sys.getrefcount(g.base) == _unshared[1]) else +g


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
        _check(self.params, "SGD got no parameters: give it those to train (an iterator can be used up before)")
        _check(len(set(self.params)) == len(self.params), "SGD got a parameter twice: give each once")
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
        _seen(self.params[0], "step() of an optimizer")
        # Python floats, which leave the dtype of the parameters alone.
        lr, momentum, weight_decay = float(self.lr), float(self.momentum), float(self.weight_decay)
        for i, p in enumerate(self.params):
            g = getattr(p._leaf[2][0], "_value", p._leaf[2][0])
            if g is None or p._node is None:
                continue
            g = g + weight_decay * p._value if weight_decay else g
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
        _seen(self.params[0], "zero_grad() of an optimizer")
        for p in self.params:
            p._leaf[2][0] = None


# --- NumPy's functions ------------------------------------------------------------------------------------------------
# From here on every row takes what NumPy's functions take: arguments by keyword, options, lists of Tensors, arrays of
# other libraries, which stay where they are; and it forgets large arrays that no rule reads. A function has a rule, as
# in the heart, or a re-expression, the same function said in other functions of the table, or it is a constant.

import copy
import functools
import inspect
import warnings


class _Unread:
    """What is kept of a large array that no rule will read: of parameters whose names begin with an underscore."""

    def __init__(self, x):
        self.dtype, self.ndim, self.shape, self.size = x.dtype, x.ndim, x.shape, x.size


def _unread(vjp, count):
    """Which of (out, *values) a VJP does not read, by position: those with an underscore in front of their names."""
    code = getattr(getattr(vjp, "func", vjp), "__code__", None)
    names, arrays, _ = inspect.getargs(code) if code else ([], "", "")  # a function in C may read all
    names = [*names, *[arrays or ""] * count][len(getattr(vjp, "args", ())) + 1 :]
    return {i for i, name in enumerate(names) if name.startswith("_")}


_structures = (tuple, list, dict)


def _leaves(tree):
    """The leaves of nested tuples, lists and dicts, in a list."""
    if not isinstance(tree, _structures):
        return [tree]
    items = tree.values() if isinstance(tree, dict) else tree
    return [leaf for x in items for leaf in (_leaves(x) if isinstance(x, _structures) else (x,))]


def _map(f, tree):
    """The f of every leaf of nested tuples, lists and dicts, in the same structure."""
    if not isinstance(tree, _structures):
        return f(tree)
    items: Any = {key: _map(f, x) for key, x in tree.items()} if isinstance(tree, dict) else [_map(f, x) for x in tree]
    if isinstance(tree, tuple) or type(tree) is type(items):
        return getattr(tree, "_make", type(tree))(items)
    new: Any = copy.copy(tree)  # of the user's own type, and given the other items
    type(items).__init__(new, items)
    if type(tree).__dictoffset__ and vars(tree) is tree:  # items that are attributes, too
        new.__dict__ = new
    return new


def _filled(tree, leaves):
    """The same structure with other leaves, as many."""
    return _map(functools.partial(next, iter(leaves)), tree)


def _value_of(x):
    """The value of a Tensor, and of a pandas object; other things as they are."""
    return x._value if isinstance(x, Tensor) else _as_value(x) if hasattr(x, "to_numpy") else x


def _is_foreign(x):
    """Whether x is an array of another library, lazy perhaps or on other machines."""
    value = x._value if isinstance(x, Tensor) else x
    return value.__class__ not in _plain and not isinstance(value, np.ndarray) and hasattr(value, "__array_function__")


def _check_local(function, *trees):
    """Refuse arrays of another library where NumPy would fetch them to this machine, without a word."""
    if any(map(_is_foreign, _leaves(trees))):
        raise TypeError(f"{_name(function)} would need the elements of an array of another library on this machine")


def _takes(rule, count, *names):
    """Whether a rule takes so many arguments and options of these names."""
    with contextlib.suppress(TypeError):
        return bool(inspect.signature(rule).bind(*range(count), **dict.fromkeys(names)))
    return False


class _Function(_Row):
    """A row of all that NumPy's functions take."""

    expression: Any = None
    # It takes long, so it is looked at once: by each row, for what is known of a rule goes with its row.
    takes = functools.cached_property(lambda self: functools.cache(_takes))

    def call(self, compute, args, options):
        if _thread.observer is not None:
            args, options = _map(lambda x: _seen(x, "an operand") if isinstance(x, Tensor) else x, [args, options])
        leaves, rule = _leaves((args, options)), self.expression or self.vjps
        live = [x for x in leaves if isinstance(x, Tensor) and x._node and rule and _thread.recording]
        foreign = any(map(_is_foreign, leaves))
        # What foreign arrays need said in other functions are no ufuncs, which every library has.
        is_ufunc = isinstance(self.function, np.ufunc) or self.function is np.linspace  # as to Python's floats
        expressed = self.expression and (live or (foreign and not is_ufunc))
        if expressed or (live and (options or len(args) != self.arity)):
            args, options = self.arrange(args, options)
        if expressed:
            # NumPy makes an array of a Python float at first place, but ufuncs only if they are given nothing else.
            if args and all([_value_of(x).__class__ in _python for x in (args if is_ufunc else args[:1])]):
                args = [args[0].astype(float) if isinstance(args[0], Tensor) else _as_array(args[0]), *args[1:]]
            return self.expression(*args, **options)
        if len(live) > len([x for x in args if getattr(x, "_node", None)]):
            raise TypeError(f"{_name(self.function)} takes Tensors one by one, by position: no list, dict or keyword")
        try:
            if not foreign:
                return super().call(compute, args, options)
            # If the arrays are here, all else has to be.
            _check_local(self.function, () if any(map(_is_foreign, args[: len(self.vjps)] or leaves)) else leaves)
            with _lock, warnings.catch_warnings(action="error", category=FutureWarning):
                return super().call(compute, args, options)
        except FutureWarning as warning:  # of another library, before it gives all it has to NumPy
            raise TypeError(f"{_name(self.function)} would fetch whole arrays to this machine: {warning}") from None
        except ValueError as error:
            if type(error).__module__.split(".")[0] not in ("builtins", "numpy"):  # the user's own
                raise
            shapes = " and ".join([str(x.shape) for x in args if isinstance(getattr(x, "shape", None), tuple)])
            raise type(error)(f"{_name(self.function)} of shapes {shapes}: {str(error).strip()}") from None

    def plain(self, args, options):
        return _map(_value_of, tuple(args)), options and _map(_value_of, options)

    def result(self, order, nodes, values, out, options=None):
        if not (self.vjps and any(nodes)):
            return _map(lambda x: _as_tensor(x) if x.__class__ is float or hasattr(x, "dtype") else x, out)
        if out.__class__ is Tensor or not (hasattr(out, "dtype") or out.__class__ is float):
            raise TypeError(f"{_name(self.function)} gave a {type(out).__name__}: it must make one array of arrays")
        if not isinstance(self.function, np.ufunc):
            arrays = [_as_array(np.asarray(x) if isinstance(x, list) else x) for x in values[: len(self.vjps)]]
            values = (*arrays, *values[len(arrays) :])
        tensor, kept = super().result(order, nodes, values, out, options), (out, *values)
        if tensor._node and any(x.__class__ is _ndarray and x.size >= _LARGE for x in kept):
            vjps = [] if self.linear else [self.vjps[i] for i, node in enumerate(nodes) if node]
            unread = {*range(len(kept))}.intersection(*[_unread(vjp, len(kept)) for vjp in vjps])
            out, *values = [_Unread(x) if i in unread and x.__class__ is _ndarray else x for i, x in enumerate(kept)]
            tensor._node = order, self, nodes, tuple(values), out, options
        return tensor

    def arrange(self, args, options):
        """A call as the rules take it: as it is, or by position as far as can be and without NumPy's defaults.

        Refuses what no rule here would see: options that NumPy has and the rule has not.
        """
        rule, arrays = (self.expression, 0) if self.expression else (next(filter(None, self.vjps)), len(self.vjps))
        before = 2 * bool(arrays)  # a VJP takes g and out before
        if len(args) < arrays or not self.takes(rule, before + len(args), *options):
            given = []
            with contextlib.suppress(ValueError):  # of functions in C that do not tell their parameters
                bound = inspect.signature(self.function).bind(*args, **options)
                for name, x in [*bound.arguments.items()][arrays:]:
                    default = bound.signature.parameters[name].default
                    if x is default or (type(x), x) == (str, default):
                        del bound.arguments[name]
                args, options, given = bound.args, bound.kwargs, [*bound.arguments][arrays:]
            extra = " and no ".join(sorted({*given, *options} - {*[*inspect.signature(rule).parameters][before:]}))
            what = f"{_name(self.function)} of a Tensor with gradients takes no {extra or 'arguments like these'}"
            instead = "say it with other functions, as np.sum(t.astype(dtype)) says np.sum(t, dtype=dtype)"
            _check(self.takes(rule, before + len(args), *options), f"{what}: {instead}", TypeError)
        return args, options


def _as_tensor(x):
    """A Tensor as it is, anything else as one: a Python float without a dtype yet."""
    return x if isinstance(x, Tensor) else _wrap(x if x.__class__ is float else _as_value(x), None)


# What to write instead of what would lose a gradient or, under jit, would be the same at every call.
# fmt: off
_instead = {
    "if, while or bool()": "np.where or np.maximum, or decide outside", "a Python number": "np. functions for math's",
    "an index": "an int, or where a shape depends on values np.sum(np.where(mask, x, 0)) for np.sum(x[mask])",
    "a NumPy array": "np.stack([t, u]) for np.array([t, u]), of rows np.stack([np.stack([...]), ...]), "
                     "X @ t for X.dot(t), Tensor(df) @ t for df @ t"}
# fmt: on


def _without_graph(tensor, what):
    """The value of a Tensor that Python takes as something else, which would lose a gradient without a word."""
    advice = f"write {_instead[what]}, or t.item() or t.detach() where a constant is meant"
    _check(_seen(tensor, what)._node is None, f"a Tensor with gradients would lose them as {what}: {advice}", TypeError)
    return tensor._value


def _shown(t):
    text = repr(t._value) if _is_foreign(t) else np.array2string(np.asarray(t._value), separator=", ", prefix="Tensor(")
    dtype = "" if t.dtype in (float, int, bool) else f", dtype={t.dtype}"
    return f"Tensor({text}{dtype}{', requires_grad=True' if t.requires_grad else ''})"


def _pickled(tensor):
    is_leaf = tensor._node is None or tensor._node[1] is None
    _check(is_leaf, "a computed Tensor has a graph, which np.copy(t) keeps: copy or pickle t.detach()", TypeError)
    attributes, slots = _Anything.__getstate__(tensor)  # a class derived from Tensor may have more of them
    slots |= {"_value": tensor.data, "_node": None, "_leaf": None, "requires_grad": tensor.requires_grad}
    return _new, (type(tensor),), (attributes, slots | {"grad": _value_of(tensor.grad)})


def _astype(x, dtype):
    """The elements in another dtype; of floats to floats, gradients pass, in the dtype of the leaf again."""
    return _as_array(x).astype(dtype)


def _sigmoid(x):
    """1 / (1 + exp(-x)) of each element, the logistic function, without overflow.

    >>> sigmoid(Tensor([-1000.0, 0.0]))
    Tensor([0. , 0.5])
    """
    small = np.exp(np.abs(x) * -1.0)
    return np.where(np.less(x, 0), small, 1) / (1 + small)


def _by_axis(function):
    """A method that takes lengths or axes also one by one: ``t.reshape(2, -1)`` as ``t.reshape((2, -1))``."""
    call = _method(function)
    return lambda t, *to, **order: call(t, to[0] if len(to) == 1 and hasattr(to[0], "__len__") else to or None, **order)


def _written(t, *_, **options):
    """An error: NumPy writes into its arrays here, and a Tensor's values stay what operations have seen."""
    raise TypeError("a Tensor cannot be written to: make a new one with np.where, np.concatenate, np.stack or np.sort")


_own_methods = """abs all any argmax argmin argpartition argsort conj conjugate copy cos cumprod cumsum diagonal dot max
    min prod ravel repeat round searchsorted sin sqrt squeeze std swapaxes take tan trace var"""
# fmt: off
for attribute, method in {
    # Methods that are NumPy's functions, and operators that are without a gradient but for %.
    **{name: _method(getattr(np, name)) for name in _own_methods.split()},
    "astype": _method(_astype), "sigmoid": _method(_sigmoid), "__invert__": _method(np.invert),
    **{f"__{side}{name}__": method for name, function in {
       "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
       "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "mod": np.mod, "floordiv": np.floor_divide
       }.items() for side, method in zip(("", "r"), _operator(function, getattr(op, f"__{name}__")), strict=True)
       if hasattr(int, f"__{side}{name}__")},
    "flatten": lambda t, *a, **o: t.copy().ravel(*a, **o), "nbytes": property(lambda t: t.size * t.dtype.itemsize),
    "real": property(_method(np.real)), "imag": property(_method(np.imag)), "__round__": _method(np.round),
    # Axes and elements. (Of a number NumPy says that it has no length.)
    "reshape": _by_axis(np.reshape), "transpose": _by_axis(np.transpose), "T": property(lambda t: t.transpose()),
    "__len__": lambda t: len(t._value if t.ndim else np.array(0)), "tolist": lambda t: np.asarray(t).tolist(),
    "__iter__": lambda t: (t[i] for i in range(len(t))), "__getitem__": lambda t, i: _apply(op.getitem, (t, i), {}),
    "__setitem__": _written, "sort": _written, "clip": lambda t, min=None, max=None: _apply(np.clip, (t, min, max), {}),
    # What Python makes of a Tensor.
    "__bool__": lambda t: bool(_seen(t, "if, while or bool()")._value),
    **{f"__{n.__name__}__": lambda t, n=n: n(_without_graph(t, "a Python number")) for n in (int, float)},
    "__array__": lambda t, dtype=None, copy=0: np.array(_without_graph(t, "a NumPy array"), dtype, copy=copy or None),
    "__format__": lambda t, spec: object.__format__(t, spec) if t.ndim else format(t.item(), spec),
    "__repr__": _shown, "__reduce__": _pickled, "__index__": lambda t: op.index(_seen(t, "an index")._value),
}.items():
    method.__doc__ = method.__doc__ or f"As ``{attribute}`` of NumPy's arrays."
    setattr(Tensor, attribute, method)
# fmt: on
for row in _table.values():
    row.__class__ = _Function


class _OwnRule(functools.partial):
    """A rule of the user's, in C perhaps, that may need ``g`` as an array like new and ``out`` as one at all."""

    def __call__(self, g, out, *arguments, **options):
        g = g if g.__class__ is not _ndarray or g.flags.carray else g.copy()
        return super().__call__(g, _as_array(out), *arguments, **options)


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
    The function to call: ``function`` itself where NumPy lets Tensors override it, else a new one that records.

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
    codes = [vjp.__code__ for vjp in filter(None, vjps) if hasattr(vjp, "__code__")]
    enough = all([code.co_flags & inspect.CO_VARARGS or code.co_argcount > 1 + len(vjps) for code in codes])
    _check(enough, "defvjp takes rules of g, the result and every argument: lambda g, out, x: ... of f(x)", TypeError)
    overrides = isinstance(function, np.ufunc) or hasattr(function, "_implementation")
    # The row of a plain function is not in the table, and so goes with those who hold what is returned.
    row = _row(function, _Function) if overrides or function in _table else _Function(function)
    row.define(tuple([vjp and _OwnRule(vjp) for vjp in vjps]))
    row.expression, row.takes = None, functools.cache(_takes)  # nothing that was known of an older rule
    return function if overrides else _recorded(function, row)


def _recorded(function, row):
    """A plain function that has a row, as one that takes Tensors."""

    def recording(*args: Any, **options: Any) -> Any:
        plain = not any(isinstance(leaf, Tensor) for leaf in _leaves((args, options)))
        return function(*args, **options) if plain else row.call(row.compute, args, options)

    return functools.wraps(function)(recording)


def _axes(x, axis):
    """``axis`` as a tuple of the axes that it stands for, none negative. (NumPy lets numbers have an axis 0.)"""
    return tuple(range(x.ndim) if axis is None else normalize_axis_tuple(axis, x.ndim or 1)[: x.ndim])


def _reduced(x, axis, keepdims=True):
    """The shape of a reduction of x over ``axis``."""
    axes = _axes(x, axis)
    return tuple([1 if a in axes else n for a, n in enumerate(x.shape) if keepdims or a not in axes])


def _merged(x, axis):
    """x with the axes that a reduction goes over merged into one, the last."""
    axes = _axes(x, axis)
    n = math.prod([x.shape[a] for a in axes])
    return np.moveaxis(x, axes, range(-len(axes), 0)).reshape((*_reduced(x, axis, keepdims=False), n))


def _nonzero(x, instead=1):
    """x, but something else where it is 0: to divide by. By infinity, where 0 / 0 shall be 0 at any order."""
    return np.where(x == 0, instead, x)


def _scaled(x, exponents):
    """x * 2.0**exponents, without an overflow on the way."""
    return np.ldexp(x, np.clip(exponents, -9999, 9999).astype(np.intc))


def _near_1(x):
    """x with powers of 2 taken out, so that products of neighbours along the last axis are all near 1, or 0.

    Returns that, the exponents, and their sums up to each place: what is left is the product over such a power of 2.
    """
    size = np.abs(x._at(None) if isinstance(x, Tensor) else x)
    sums = np.rint(np.cumsum(np.log2(np.where((size > 0) & (size < math.inf), size, 1).astype(float)), -1))
    exponents = sums - np.concatenate([np.zeros_like(sums[..., :1]), sums[..., :-1]], -1)
    return _scaled(x, -exponents), exponents, sums


def _before(x):
    """For each element the product of all before it along the last axis."""
    return np.concatenate([np.ones_like(x[..., :1]), np.cumprod(x[..., :-1], -1)], -1)


def _prod_vjp(g, out, a, axis=None, *, keepdims=False):
    """g times the product of the other factors: by division where no product comes near overflow or underflow.

    Where one may, and for other arrays than NumPy's, without division: so zeros do no harm at any order.
    """
    low, high = ((size := np.abs(a)).min(), size.max()) if a.__class__ is _ndarray and a.size else (0, 0)
    count = a.size // (out.size or 1)
    if 0 < low <= high < math.inf and count * max(-math.log2(low), math.log2(high)) < -np.finfo(a.dtype).minexp:
        return _spread(out, out, a, axis) / a * _spread(g, out, a, axis)
    axes, (x, exponents, sums) = _axes(a, axis), _near_1(_merged(a, axis))
    g = g.reshape(_reduced(a, axis, keepdims=False))[..., None] * _before(x) * np.flip(_before(np.flip(x, -1)), -1)
    g = _scaled(g, sums[..., -1:] - exponents).reshape((*g.shape[:-1], *[a.shape[i] for i in axes]))
    return np.moveaxis(g, [*range(-len(axes), 0)], axes)


def _cumprod_vjp(g, _out, a, axis=None):
    """Without division too: sums of g times the factors between, in log2(n) steps (Hillis and Steele, 1986).

    They are g * 2.0**powers at each step, so that nothing overflows before the gradient does.
    """
    x, g = [np.moveaxis(np.ravel(x) if axis is None else np.atleast_1d(x), axis or 0, -1) for x in (a, g)]
    x, exponents, sums = _near_1(x)
    powers, between, n = sums, x[..., 1:], 1
    while n < g.shape[-1]:
        here, after, low, high = g[..., :-n], between * g[..., n:], powers[..., :-n], powers[..., n:]
        top = np.where(after == 0, low, np.where(here == 0, high, np.maximum(low, high)))
        near = _scaled(here, low - top) + _scaled(after, high - top)
        g, powers = np.concatenate([near, g[..., -n:]], -1), np.concatenate([top, powers[..., -n:]], -1)
        between, n = between[..., :-n] * between[..., n:], 2 * n
    g = _scaled(_before(x) * g, powers - exponents)
    return np.moveaxis(g, -1, axis or 0).reshape(a.shape)


def _share(g, out, a, axis=None, *, keepdims=False, where=True, initial=math.nan):
    """The gradient of max and min: to the elements that are it, in equal shares where there are ties."""
    out, g = out.reshape(_reduced(a, axis)), g.reshape(_reduced(a, axis))
    hit = (a == out) | (a != a)  # nan is its own maximum
    hit = hit if where is True else hit & where
    # Counted as integers, as there may be more than the dtype of g can tell.
    count = hit.sum(axis=axis, keepdims=True)
    count = count if where is True and initial != initial else np.maximum(count + (out == initial), 1)
    return np.where(hit, (g / count).astype(g.dtype), 0)


def _unshaped(g, _out, _a, axis=None, order="C", *, shape=None, newshape=None):
    """Of reshape, where the second argument is the shape, and of squeeze and expand_dims, where it is an axis."""
    _check(order in ("C", "F"), f"no gradient goes back through the order {order!r} in memory: give 'C' or 'F'")
    return g.reshape(_a.shape) if order == "C" else g.T.reshape(_a.shape[::-1]).T


def _both(vjp):
    """The rules of a function in which the two operands can change places."""
    return vjp, lambda g, out, x, y, *rest, **options: vjp(g, out, y, x, *rest, **options)


def _won(loses):
    """The gradient of maximum and minimum: nothing to the operand that lost, half to each where they are equal."""
    return _both(lambda g, _, x, y: np.where(loses(x, y), 0, np.where(x == y, g / 2, g)))


_items = np.index_exp.__getitem__  # the tuple that an index stands for


def _is_basic(index):
    """Whether an index names no element twice."""
    kinds = int, np.integer, slice, type(None), type(...)
    return all(isinstance(i, kinds) and type(i) is not bool for i in _items(index))


class _Placed:
    """Gradients of some elements of an array each, to be added up: into one array, however many they are."""

    __array_ufunc__ = None  # array + this is the business of this one

    def __init__(self, g, index, like):
        self.parts, self.shape, self.ndim, self.dtype = [(g, index)], like.shape, like.ndim, g.dtype

    def __add__(self, other):
        self.parts += other.parts if other.__class__ is _Placed else [(other, ...)]
        return self

    __radd__ = __add__

    def __pos__(self):
        out = np.zeros(self.shape, self.dtype)
        for g, index in self.parts:
            if index is ...:
                out = out + g  # of another library perhaps
            elif _is_basic(index):
                out[index] += g
            else:
                np.add.at(out, index, g)
        return out


def _item_vjp(g, _out, _x, index):
    if all(i is None or i is ... or (type(i) is slice and i == slice(None)) for i in _items(index)):
        return g.reshape(_x.shape)
    if g.__class__ in _local and _x.__class__ in (_ndarray, _Unread) and not _detours:
        return _Placed(g, index, _x)
    return _scatter(g, index, _x._at(None) if isinstance(_x, Tensor) else _x)


def _add_at(values, index, like):
    """Zeros of the shape and kind of ``like``, with the values added at an index: what repeats in the index adds up."""
    if not (_is_foreign(values) or _is_foreign(like)):
        return +_Placed(values, index, like)
    out = np.zeros_like(like if _is_foreign(like) else values, values.dtype, shape=like.shape)
    _check_local(op.getitem, () if _is_basic(index) else out)
    # Slices, to which every library can write.
    part = [slice(int(i), int(i) + 1 or None) if hasattr(i, "__index__") else i for i in _items(index) if i is not None]
    if values.size:
        out[tuple(part)] = np.broadcast_to(values, out[index].shape).reshape(out[tuple(part)].shape)
    return out


def _var_vjp(g, _out, a, axis=None, *, ddof=0, keepdims=False):
    freedom = max(int(a.size) / max(_out.size, 1) - float(ddof), 5e-324)
    return (a - a.mean(axis=axis, keepdims=True)) * _spread(g * (2 / freedom), _out, a, axis)


def _length_vjp(g, out, x, p, axis, keepdims):
    """Of the norm of vectors, or of all elements as one."""
    norm, is_2 = _spread(_nonzero(out, math.inf), out, x, axis), p in (None, 2, "fro")
    # Of order 0 it counts, and of orders below it is 0 if an element is: without a slope.
    g = _spread(g if is_2 or p > 0 else g * ((p < 0) * (out != 0)), out, x, axis)
    return x / norm * g if is_2 else np.sign(x) * np.abs(_nonzero(x / norm)) ** (float(p) - 1) * g


def _columns(x, like):
    """x as a matrix, or a stack of such: what solve takes as vectors as columns."""
    return x.reshape((*x.shape, 1)) if np.ndim(like) == 1 else x


def _diagonal_vjp(g, _out, _a, offset=0, axis1=0, axis2=1):
    """In a matrix of m columns whose rows stand in a line, a diagonal has every (m + 1)th place."""
    n, m = _a.shape[axis1], _a.shape[axis2]
    places = slice(max(offset, -offset * m), max(0, min(n, m - offset)) * m, m + 1)
    line = _scatter(g, (..., places), np.empty((*g.shape[:-1], n * m)))
    return np.moveaxis(line.reshape(*g.shape[:-1], n, m), (-2, -1), (axis1, axis2))


def _repeat_vjp(g, _out, _a, repeats, axis=None):
    shape, axis = (_a.shape, _axes(_a, axis)[0]) if axis is not None and _a.ndim else ((_a.size,), 0)
    if np.size(repeats) > 1:
        places = np.repeat(np.arange(shape[axis]), repeats)
        return _scatter(g, (*[slice(None)] * axis, places), np.empty(shape)).reshape(_a.shape)
    return g.reshape(*shape[: axis + 1], -1, *shape[axis + 1 :]).sum(axis + 1).reshape(_a.shape)


def _tile_vjp(g, _out, _a, reps):
    pairs = [k for n, m in zip(g.shape, (1,) * (g.ndim - _a.ndim) + _a.shape, strict=True) for k in (n // (m or 1), m)]
    return g.reshape(pairs).sum((*range(0, 2 * g.ndim, 2),)).reshape(_a.shape)


def _tensordot_vjp(i, g, _out, a, b, axes=2):
    """g, summed over the free axes of the other array, has the free axes of this one, and after them the others."""
    over: Any = ([*range(-axes, 0)], [*range(axes)]) if isinstance(axes, (int, np.integer)) else axes
    last = [*range(-np.size(over[i]), 0)]
    x = np.moveaxis((b, a)[i], over[1 - i], last)  # the other array, its free axes first
    free = [*range(x.ndim - len(last))]
    return np.moveaxis(np.tensordot(g, x, (free if i else [*range(g.ndim - len(free), g.ndim)], free)), last, over[i])


def _mirrored(x, UPLO="L"):
    """The symmetric matrix that has the lower triangle of x, or the upper one."""
    return np.where(np.tri(x.shape[-1], dtype=bool) == (UPLO in "lL"), x, _mT(x))


def _over_gap(x, gap, turn):
    """x / gap; but matrices without a turn of their vectors need no gap between the values."""
    return x / np.where((turn == 0).all((-2, -1), keepdims=True) & (gap == 0), math.inf, gap)


def _uv_vjp(g, out, _a, _triangle=None):
    """Townsend, 2016, "Differentiating the singular value decomposition", of U, V and a row of the values in one array.

    His 2 / (t**2 - s**2) is split in two: 1 / (t - s) for what turns left and right vectors alike, 1 / (t + s) for what
    turns them apart. Without V it is the rule of eigh, whose U is V (Giles, 2008, "An extended collection of matrix
    derivative results"). Equal values have any vectors of a space, and so has 0: there it is exact for functions of the
    values alone, and nan or infinite for others, as in PyTorch and autograd.
    """
    (m, n), eye = _a.shape[-2:], np.eye(out.shape[-1], dtype=bool)
    (u, v, s), (gu, gv, gs) = [(x[..., :m, :], x[..., m:-1, :], x[..., -1:, :]) for x in (out, g)]
    left, right, w = _mT(u) @ gu, _mT(v) @ gv, v if out.shape[-2] == m + n + 1 else u
    turns = [(left + right, s - _mT(s)), (left - right, s + _mT(s))][: 1 + (w is v)]
    gu_w = u @ functools.reduce(op.add, [_over_gap(x - _mT(x), gap + eye, x) for x, gap in turns]) / 2 + u * gs
    gu_w = gu_w + _over_gap(gu - u @ left, s, gu) if m > n else gu_w  # by what leaves the space of U, or that of V
    return gu_w @ _mT(w) + u @ _mT(_over_gap(gv - v @ right, s, gv)) if n > m else gu_w @ _mT(w)


# fmt: off
relu, sigmoid, _scatter, _gather = [_recorded(f, _row(f, _Function)) for f in (_relu, _sigmoid, _add_at, op.getitem)]
for kind, rules in {
    "elementwise": {
        np.sqrt:      lambda g, out, _x: g / (2 * out),              np.cbrt:    lambda g, out, _x: g / (3 * out * out),
        np.exp2:      lambda g, out, _x: g * (out * math.log(2)),    np.expm1:    lambda g, out, _x: g * (out + 1),
        np.log2:      lambda g, _, x: g / x / math.log(2),           np.log10:   lambda g, _, x: g / math.log(10) / x,
        np.log1p:     lambda g, _, x: g / (1 + x),                   np.sin:      lambda g, _, x: g * np.cos(x),
        np.cos:       lambda g, _, x: -g * np.sin(x),                np.tan:     lambda g, out, _x: g + g * out * out,
        np.arcsin:    lambda g, _, x: g / np.sqrt((1 - x) * (1 + x)), np.sinh:    lambda g, _, x: g * np.cosh(x),
        np.arccos:    lambda g, _, x: -g / np.sqrt((1 - x) * (1 + x)), np.cosh:   lambda g, _, x: g * np.sinh(x),
        np.arccosh:   lambda g, _, x: g / np.sqrt(x - 1) / np.sqrt(x + 1), np.square: lambda g, _, x: g * (2 * x),
        np.arctan: lambda g, _, x: g / (h := np.hypot(x, 1)) / h, np.ldexp: (lambda g, _, _x, i: np.ldexp(g, i), None),
        np.arctanh:   lambda g, _, x: g / ((1 - x) * (1 + x)),       np.arcsinh:  lambda g, _, x: g / np.hypot(x, 1),
        _sigmoid:     lambda g, out, _x: g * (out * (1 - out)),       _astype: lambda g, _, _x, _dtype: g,
        np.copysign: (lambda g, out, x, _y: g * np.sign(x) * np.sign(out), lambda g, _, _x, _y: np.zeros_like(g)),
        np.remainder: (lambda g, _, _x, _y: g,                       lambda g, _, x, y: -g * np.floor_divide(x, y)),
        np.maximum: _won(op.lt), np.minimum: _won(op.gt), np.logaddexp: _both(lambda g, _, x, y: g * sigmoid(x - y)),
        np.hypot:     (lambda g, out, x, _y: g * (x / _nonzero(out)), lambda g, out, _x, y: g * (y / _nonzero(out))),
        np.arctan2:   (lambda g, _, y, x: g * (x / (r := _nonzero(np.hypot(x, y)))) / r,
                       lambda g, _, y, x: -g * (y / (r := _nonzero(np.hypot(x, y)))) / r),
        np.logaddexp2: _both(lambda g, _, x, y: g * sigmoid((x - y) * math.log(2)))},
    "reduction": {
        np.var: _var_vjp, np.std: lambda g, out, a, axis=None, *, ddof=0, keepdims=False: (
            _var_vjp(g / 2, out, a, axis, ddof=ddof) / _spread(_nonzero(out, math.inf), out, a, axis))},
    "": {  # type: ignore[misc]
        **{nan_function: lambda g, out, a, axis=None, *, keepdims=False, vjp=vjp: (
               vjp(g, out, a, axis, keepdims=keepdims, where=~np.isnan(a))) for nan_function, vjp in {
            np.nansum: _spread, np.nanmean: _mean_vjp, np.nanmax: _share, np.nanmin: _share}.items()},
        np.nanvar: lambda g, _out, a, axis=None, *, ddof=0, keepdims=False: (
            np.where(np.isnan(a), 0, a - np.nanmean(a, axis, keepdims=True)) * _spread((2 * g / np.maximum(
                np.sum(~np.isnan(a), axis, keepdims=keepdims) - ddof, 0)).astype(g.dtype), _out, a, axis)),
        # Functions that do the same to a gradient.
        **{f: lambda g, _, _m, *a, f=f, **o: f(g, *a, **o) for f in (np.flip, np.triu, np.tril, np.swapaxes)},
        np.max: _share, np.min: _share, np.prod: _prod_vjp, np.cumprod: _cumprod_vjp,
        np.convolve: _both(lambda g, _, _a, v, mode="full": np.convolve(np.pad(g, (
            (n := np.size(_a) + np.size(v) - 1 - g.size) // 2, n - n // 2)), np.flip(v), "valid").reshape(_a.shape)),
        np.reshape: _unshaped, np.squeeze: _unshaped, np.expand_dims: _unshaped,            np.repeat: _repeat_vjp,
        np.ravel:     lambda g, _, _a, order="C": _unshaped(g, _, _a, None, order),        np.diagonal: _diagonal_vjp,
        np.broadcast_to: lambda g, _, _a, shape: g,  _add_at: lambda g, _, _values, index, like: _gather(g, index),
        np.outer:     (lambda g, _, _a, b: (g @ np.ravel(b)).reshape(np.shape(_a)),
                       lambda g, _, a, _b: (np.ravel(a) @ g).reshape(np.shape(_b))),
        np.tensordot: tuple(functools.partial(_tensordot_vjp, i) for i in (0, 1)),         np.tile: _tile_vjp,
        np.trace: lambda g, _, _a, offset=0, axis1=0, axis2=1: _diagonal_vjp(g[..., None], _, _a, offset, axis1, axis2),
        np.diag: lambda g, _, _v, k=0: np.diagonal(g, k) if _v.ndim == 1 else _diagonal_vjp(g, _, _v, k),
        np.transpose: lambda g, _, _a, axes=None: g.T if axes is None else np.moveaxis(g, [*range(g.ndim)], axes),
        np.moveaxis: lambda g, _, _a, source, destination: np.moveaxis(g, destination, source), op.getitem: _item_vjp,
        np.roll:    lambda g, _, _a, shift, axis=None: np.roll(g, np.negative([shift], dtype=object).tolist()[0], axis),
        np.cumsum:    lambda g, _, _a, axis=None: np.flip(np.cumsum(np.flip(g, axis), axis), axis).reshape(_a.shape),
        np.nan_to_num: lambda g, _, x, *, nan=0.0, posinf=None, neginf=None: np.where(np.isfinite(x), g, 0),
        np.linalg.solve: (lambda g, out, a, _b: -(np.linalg.solve(_mT(a), _columns(g, _b)) @ _mT(_columns(out, _b))),
                          lambda g, _, a, _b: np.linalg.solve(_mT(a), _columns(g, _b)).reshape(g.shape)),
        np.linalg.inv: lambda g, out, _a: -(_mT(out) @ g @ _mT(out)),
        np.linalg.det: lambda g, out, a: (g * out)[..., None, None] * _mT(np.linalg.inv(a)),
        # Golub and Pereyra, 1973, for matrices that keep their rank.
        np.linalg.pinv: lambda g, out, a, rcond=None: ((x := _mT(g)) - a @ (out @ x)) @ out @ _mT(out) + (
            _mT(out) @ (out @ (x - x @ out @ a) - g @ _mT(out))),
        # The sum of a.T**i @ g @ a.T**(n - 1 - i), which is in a corner of the power of [[a.T, g], [0, a.T]].
        np.linalg.matrix_power: (lambda g, _, a, n: np.linalg.matrix_power(np.concatenate([np.concatenate(row, -1) for
            row in ((_mT(a), g), (np.zeros_like(g), _mT(a)))], -2), n)[..., : a.shape[-1], a.shape[-1] :], None)},
}.items():
    for function, vjps in rules.items():  # type: ignore[attr-defined]
        _row(function, _Function).define(vjps if isinstance(vjps, tuple) else (vjps,), kind)
_log_of_det = defvjp(lambda a: np.linalg.slogdet(a)[1], lambda g, _, a: g[..., None, None] * _mT(np.linalg.inv(a)))
_length = defvjp(np.errstate(divide="ignore")(np.linalg.norm), _length_vjp)
_limited = defvjp(lambda a, low, high: np.clip(a, low, high),
                  lambda g, out, a, low, high: np.where(((out == a) & (low <= high)) | (a != a), g, 0),
                  lambda g, out, a, low, _high: np.where((a < low) & (out == low), g, 0),
                  lambda g, out, a, low, high: np.where((out == high) & ((a > high) | (low > high)), g, 0))
_padded = defvjp(lambda a, width, x: np.pad(a, width, constant_values=x), lambda g, _, _a, width, _x: g[tuple([
    slice(i, i + n) for (i, _), n in zip(np.broadcast_to(width, (g.ndim, 2)).tolist(), _a.shape, strict=True)])], None)
_differences = defvjp(functools.partial(np.diff), lambda g, _, _a, n, axis: functools.reduce(
    lambda g, zero: -np.diff(g, 1, axis, zero, zero), [g.dtype.type(0)] * min(n, _a.shape[axis]), g))
# Seeger et al., 2017, "Auto-differentiating linear algebra", for a symmetric matrix.
_cholesky = defvjp(functools.partial(np.linalg.cholesky, upper=False),  # which no library takes for the upper one
                   lambda g, out, _a: _mT(x := np.linalg.inv(out)) @ _mirrored(_mT(out) @ g) @ x / 2)
# A rule is of one result: all matrices, one below the other, or Q, as R follows from it (Seeger et al., 2017).
_vw = defvjp(lambda a, UPLO: np.concatenate([(x := np.linalg.eigh(a, UPLO))[1], x[0][..., None, :]], -2), _uv_vjp, None)
_uvs = defvjp(lambda a: np.concatenate([(x := np.linalg.svd(a, False))[0], _mT(x[2]), x[1][..., None, :]], -2), _uv_vjp)
_q = defvjp(lambda a: np.linalg.qr(a)[0], lambda g, q, a: (g - q @ _mirrored(_mT(g) @ q)) @ np.linalg.inv(_mT(a) @ q))
# A function of NumPy's without gradients, for the values that a re-expression takes from NumPy.
_constant = functools.cache(lambda function: defvjp(functools.partial(function), None))
# The value that NumPy computed, with the gradients of what says the same in other functions.
_exact = defvjp(lambda _way, value: value, lambda g, _, _way, _value: g, None)
# The quickest ways to some values. Python's own operators are many times faster on NumPy scalars. (But of a Python
# float, NumPy's functions make one of NumPy's numbers.) The mean is the sum, divided, in half of the time.
for function, compute in dict[Any, Any]({
    np.negative: op.neg, np.positive: op.pos, np.absolute: abs,
    np.sum: op.methodcaller("sum"), np.max: op.methodcaller("max"), np.min: op.methodcaller("min"),
    np.mean: lambda a: a.sum() / a.size if a.__class__ is _ndarray and a.size and a.dtype.char in "fd" else np.mean(a),
}).items():
    _table[function].quick = _unary(_table[function], compute, function)
# fmt: on
_table[op.getitem].compute = lambda x, index: _as_array(x)[index]

# What follows says NumPy's functions in others of the table, with NumPy's names for the parameters.


def _average(a, axis=None, weights=None, *, keepdims=False):
    if weights is None:
        return np.mean(a, axis, keepdims=keepdims)
    a, weights = _as_tensor(a), _as_tensor(weights)
    value = _constant(np.average)(a, axis, weights, keepdims=keepdims)
    weights = (_merged(weights, axis) if weights.shape == a.shape else np.ravel(weights)).astype(value.dtype)
    return _exact(((_merged(a, axis) * weights).sum(-1) / weights.sum(-1)).reshape(value.shape), value)


def _take(a, indices, axis=None, *, mode="raise"):
    _check_local(np.take, indices)
    a = np.ravel(a) if axis is None else np.atleast_1d(a)
    (before,) = _axes(a, axis or 0)
    return a[(*[slice(None)] * before, np.take(np.arange(a.shape[before]), indices, mode=mode))]


def _quantile(a, q, axis=None, *, method="linear", keepdims=False):
    """Of the elements in order those around the places that NumPy says have their shares."""
    ordered = np.sort(_merged(a, axis))
    places = np.arange(float(ordered.shape[-1]))
    at = np.quantile(places, np.ravel(np.asarray(q)), method=method)
    value = np.quantile(a.detach(), q, axis, method=method, keepdims=keepdims)
    way = ordered @ np.maximum(0, 1 - np.abs(places[:, None] - at)).astype(value.dtype)
    return _exact(np.moveaxis(way, -1, 0).reshape(value.shape), value)


def _interp(x, xp, fp):
    x, xp, fp = [_as_tensor(array).astype(float) for array in (x, xp, fp)]
    i = np.clip(np.searchsorted(xp, x), 1, len(xp) - 1)
    share = (np.clip(x, xp[0], xp[-1]) - xp[i - 1]) / _nonzero(xp[i] - xp[i - 1])
    return _exact(fp[i - 1] * (1 - share) + fp[i] * share, np.interp(x.detach(), xp.detach(), fp.detach()))


def _gradient(f, *varargs, axis=None, edge_order=1):
    """A product with a matrix of three elements a row, side by side, which NumPy makes of three combs."""
    _check_local(np.gradient, f)
    axes = _axes(f := _as_tensor(f), axis)
    values = np.gradient(f.detach(), *map(np.asarray, varargs), axis=axis, edge_order=edge_order)

    def along(axis, spacing):
        at, tooth = np.arange(f.shape[axis]), np.arange(3)[:, None]
        start = np.clip(at - 1, 0, len(at) - 3)
        weights = np.gradient((at % 3 == tooth) * f.dtype.type(1), spacing, axis=1, edge_order=edge_order)
        return np.moveaxis((np.moveaxis(f, axis, -1)[..., start + (tooth - start) % 3] * weights).sum(-2), -1, axis)

    return _filled(values, map(_exact, map(along, axes, itertools.cycle(varargs or [1.0])), _leaves(values)))


def _sinc(x):
    """Near 0 by its series, whose derivatives lose no digits there."""
    is_near = np.abs(x) < 1.5 * np.finfo(x.dtype).eps ** 0.1
    square, far = np.where(is_near, np.square(x * math.pi), 0), np.where(is_near, 1, x) * math.pi
    series = 1 - square / 6 * (1 - square / 20 * (1 - square / 42 * (1 - square / 72)))
    return np.where(is_near, series, np.sin(far) / far)


def _diff(a, n=1, axis=-1, prepend=np._NoValue, append=np._NoValue):
    a = _as_tensor(a)
    one = [1 if i == axis % a.ndim else length for i, length in enumerate(a.shape)]
    parts = [x if np.ndim(x) else np.broadcast_to(x, one) for x in (prepend, a, append) if n and x is not np._NoValue]
    return _differences(np.concatenate(parts, axis) if len(parts) > 1 else a, n, axis)


def _norm(x, ord=None, axis=None, keepdims=False):
    axes = _axes(x, axis)
    if len(axes) == 2 and ord in (of := dict[Any, Any]({2: np.max, -2: np.min, "nuc": np.sum})):
        return of[ord](_uvs(np.moveaxis(x, axes, (-2, -1)))[..., -1, :], -1).reshape(_reduced(x, axis, keepdims))
    if ord in {1: (math.inf, -math.inf), 2: (1, -1, math.inf, -math.inf)}.get(len(axes), ()):
        of_lines = axes[int(abs(ord) != 1)] if len(axes) == 2 else ()  # columns or rows, whose sums are compared
        return (np.max if ord > 0 else np.min)(np.abs(x).sum(of_lines, keepdims=True), axes, keepdims=keepdims)
    return _length(x, ord, axis, keepdims)


def _svd(a, full_matrices=True, compute_uv=True):
    uvs, (m, n) = _uvs(a), a.shape[-2:]
    _check(m == n or not (full_matrices and compute_uv), f"np.linalg.svd of {a.shape}: write full_matrices=False")
    u, v, s = uvs[..., :m, :], uvs[..., m:-1, :], uvs[..., -1, :]
    return _filled(np.linalg.svd(np.eye(1)), [u, s, _mT(v)]) if compute_uv else s


def _lstsq(a, b):
    """It leaves out more as 0 than pinv, and as much in float32: NumPy's LAPACK is that of float64."""
    _, squares, rank, _ = _constant(np.linalg.lstsq)(a, b)
    x = np.linalg.pinv(a := _as_tensor(a).astype(squares.dtype), np.finfo(float).eps * max(a.shape)) @ b
    return x, np.atleast_1d(((b - a @ x) ** 2).sum(0))[: squares.size], rank, _uvs(a)[..., -1, :]


def _cross(a, b, axisa=-1, axisb=-1, axisc=-1, axis=None):
    a, b = [np.moveaxis(x, i if axis is None else axis, -1) for x, i in ((a, axisa), (b, axisb))]
    _check(a.shape[-1] == b.shape[-1] == 3, f"np.cross takes vectors of 3 components, not {a.shape} and {b.shape}")
    cross = np.roll(a, -1, -1) * np.roll(b, 1, -1) - np.roll(a, 1, -1) * np.roll(b, -1, -1)
    return np.moveaxis(cross, -1, axisc if axis is None else axis)


def _join(function, arrays, axis=0):
    """concatenate or stack: each array gets back its own stretch of the gradient."""
    if axis is None and function is np.concatenate:
        return np.concatenate([*map(np.ravel, arrays)])
    arrays, axis, is_stack = [*map(_as_tensor, arrays)], op.index(axis), function is np.stack
    ends = [0, *itertools.accumulate([sum(x.shape[axis:][:1]) for x in arrays])]  # NumPy tells of a wrong axis
    places = range(len(arrays)) if is_stack else map(slice, ends, ends[1:])
    before = [slice(None)] * (axis + (axis < 0) * (is_stack + max([x.ndim for x in arrays], default=0)))
    row = _Function(function, [op.itemgetter((*before, place) if before else place) for place in places], linear=True)
    return row.call(lambda *arrays: function(arrays, axis), arrays, {})


def _einsum(*operands, optimize=False):
    """With a letter for each axis, as NumPy spells it out when asked for the order of the products."""
    said, *arrays = operands if isinstance(operands[0], str) else ("", *operands[: len(operands) // 2 * 2 : 2])
    if "->" not in said or "." in said:
        shapes = [np.broadcast_to(0, x.shape) if hasattr(x, "shape") else x for x in operands]
        said = np.einsum_path(*shapes)[1].split()[2]
    terms, result = said.replace(" ", "").split("->")
    inputs, unused = terms.split(","), [x for x in map(chr, range(65, 123)) if x.isalpha() and x not in terms]

    def vjp(i, g, _out, *arrays):
        """The sum of products with g in the place of array i.

        A letter that the term of array i has twice gets there through a unit matrix, and one that no other term has
        through a single 1, as an axis along which all is the same.
        """
        term, shape, rest = inputs[i], arrays[i].shape, [result, *inputs[:i], *inputs[i + 1 :]]
        target = [unused[axis] if letter in term[:axis] else letter for axis, letter in enumerate(term)]
        ways = {x + y: np.eye(n, dtype=g.dtype) for x, y, n in zip(term, target, shape, strict=True) if x != y}
        ways |= {letter: np.ones(1, g.dtype) for letter in term if letter not in "".join([*rest, *ways])}
        said = f"{','.join([*rest, *ways])}->{''.join(target)}"
        g = np.einsum(said, g, *arrays[:i], *arrays[i + 1 :], *ways.values(), optimize=bool(optimize))
        return g if g.shape == shape else g + np.zeros_like(arrays[i])

    row = _Function(np.einsum, [functools.partial(vjp, i) for i in range(len(arrays))])
    return row.call(lambda *x: np.einsum(f"{terms}->{result}", *x, optimize=optimize), [*map(_as_tensor, arrays)], {})


def _move(function, arrays, *rest, **options):
    """A function that moves the elements of arrays: what it does to numbers says where to."""
    leaves = _leaves(arrays)
    _check_local(function, leaves, rest, options)
    flat = np.concatenate([*map(np.ravel, leaves)]) if len(leaves) > 1 else np.ravel(leaves[0])
    numbers = np.split(np.arange(flat.size), [*itertools.accumulate(map(np.size, leaves))][:-1])
    return flat[function(_filled(arrays, map(np.reshape, numbers, map(np.shape, leaves))), *rest, **options)]


def _split(function, ary, indices_or_sections, *axis):
    """The parts, each a stretch of the array."""
    (along,) = _axes(ary, {np.hsplit: int(ary.ndim > 1), np.dsplit: 2}.get(function, *axis or [0]))
    places = np.arange(ary.shape[along]).reshape([-1 if i == along else 1 for i in range(ary.ndim)])
    parts = [part.ravel().tolist() or [0, -1] for part in function(places, indices_or_sections, *axis)]
    return [ary[(*[slice(None)] * along, slice(part[0], part[-1] + 1))] for part in parts]


def _pad(array, pad_width, mode="constant", *, constant_values=0):
    _check(mode in {"constant", "edge", "reflect", "symmetric", "wrap"}, f"np.pad with {mode=} has no rule", TypeError)
    pad_width = np.asarray(pad_width).astype(int, casting="same_kind").tolist()  # which jit takes as fixed
    return _padded(array, pad_width, constant_values) if mode == "constant" else _move(np.pad, array, pad_width, mode)


def _joined(axis, arrays, ndim):
    """The arrays, joined along an axis, those of fewer axes lengthened before."""
    return np.concatenate([a if np.ndim(a) >= ndim else getattr(np, f"atleast_{ndim}d")(a) for a in arrays], axis)


def _lengthen(function, *arys):
    """A function that only adds axes of length 1, to each of its arguments."""
    out = [np.reshape(array, function(np.broadcast_to(0, np.shape(array))).shape) for array in arys]
    return tuple(out) if len(out) > 1 else out[0]


# fmt: off
for names, expression in {
    # Elements.
    "conjugate real real_if_close": lambda a, tol=100: +a, "copy": lambda a: +a, "fabs": abs,
    "clip": lambda a, a_min=None, a_max=None, *, min=None, max=None: _limited(a, *[
        next(x for x in given if x is not None) for given in ((min, a_min, -math.inf), (max, a_max, math.inf))]),
    "deg2rad radians": lambda x: x * (math.pi / 180), "rad2deg degrees": lambda x: x * (180 / math.pi),
    "fmax": lambda x, y: np.where(np.greater_equal(x, y) | np.not_equal(y, y), x, y), "reciprocal": lambda x: 1 / x,
    "fmin": lambda x, y: np.where(np.less_equal(x, y) | np.not_equal(y, y), x, y), "interp": _interp, "sinc": _sinc,
    "full_like": lambda a, x, dtype=None, *, shape=None: _whole(_as_tensor(x), np.zeros_like(a, dtype, shape=shape)),
    "linspace": lambda start, stop, num=50, endpoint=True, *, axis=0: np.moveaxis(start * (
        1 - (w := np.linspace(np.zeros_like(stop - start), 1, num, endpoint))) + stop * w, 0, axis),
    "select": lambda condlist, choicelist, default=0: functools.reduce(
        lambda rest, pair: np.where(pair[0], pair[1], rest), [*zip(condlist, choicelist, strict=True)][::-1],
        default + np.result_type(*map(_value_of, _leaves([default, choicelist]))).type(-0.0)),
    # Reductions, and what goes along an axis.
    "amax": np.max, "amin": np.min, "average": _average, "diff": _diff, "gradient": _gradient, "quantile": _quantile,
    "ptp": lambda a, axis=None, *, keepdims=False: a.max(axis, keepdims=keepdims) - a.min(axis, keepdims=keepdims),
    "nanstd": lambda a, axis=None, **given: np.where((x := np.nanvar(a, axis, **given)) == 0, 0, np.sqrt(_nonzero(x))),
    "median": lambda a, axis=None, **how: _exact(np.quantile(a, 0.5, axis, **how), np.median(a.detach(), axis, **how)),
    "percentile": lambda a, q, axis=None, **options: np.quantile(a, np.divide(q, a.dtype.type(100)), axis, **options),
    "sort": lambda a, axis=-1, kind=None, **stable: np.take_along_axis(a, np.argsort(a, axis, kind, **stable), axis),
    "partition": lambda a, kth, axis=-1, kind="introselect": np.take_along_axis(np.sort(a, axis), np.argsort(
        np.argsort(np.partition(a.detach(), kth, axis, kind), axis), axis), axis),
    # Products.
    "dot": lambda a, b: a @ b if np.ndim(a) and 0 < np.ndim(b) < 3 else (
        np.tensordot(a, b, (-1, -2) if np.ndim(a) and np.ndim(b) else 0)),
    "inner": lambda a, b: a @ np.transpose(b) if np.ndim(a) and 0 < np.ndim(b) < 3 else (
        np.tensordot(a, b, (-1, -1) if np.ndim(a) and np.ndim(b) else 0)),
    "vdot": lambda a, b: np.ravel(a) @ np.ravel(b), "linalg.matmul": op.matmul, "cross": _cross,
    # All products of two elements, in the order of (row of a, row of b, column of a, column of b), and so on.
    "kron": lambda a, b: (ab := _as_tensor(a).reshape([n for m in np.shape(a) for n in (m, 1)]) * _as_tensor(b).reshape(
        [n for m in np.shape(b) for n in (1, m)])).reshape([*map(op.mul, ab.shape[::2], ab.shape[1::2])]),
    "linalg.tensordot": lambda x1, x2, axes=2: np.tensordot(x1, x2, axes), "einsum": _einsum, "linalg.norm": _norm,
    "linalg.slogdet": lambda a: _constant(np.linalg.slogdet)(a)._replace(logabsdet=_log_of_det(a)),
    "linalg.eigh": lambda a, UPLO="L": _filled(np.linalg.eigh(np.eye(1)), [
        (vw := _vw(_mirrored(a, UPLO), UPLO))[..., -1, :], vw[..., :-1, :]]),
    "linalg.eigvalsh": lambda a, UPLO="L": np.linalg.eigh(a, UPLO)[0], "linalg.svd": _svd, "linalg.lstsq": _lstsq,
    "linalg.qr": lambda a: _filled(np.linalg.qr(np.eye(1)), [q := _q(a[..., : a.shape[-2:][0]]), np.triu(_mT(q) @ a)]),
    "linalg.cholesky": lambda a: _cholesky(_mirrored(a)), "linalg.matrix_transpose matrix_transpose": _mT,
    # Places.
    "concatenate": functools.partial(_join, np.concatenate), "stack": functools.partial(_join, np.stack),
    "hstack": lambda tup: _joined(int(np.ndim(tup[0]) > 1), tup, 1), "vstack": lambda tup: _joined(0, tup, 2),
    "append": lambda arr, values, axis=None: np.concatenate([arr, values], axis), "fliplr": lambda m: np.flip(m, 1),
    "column_stack": lambda tup: np.concatenate([a if np.ndim(a) > 1 else np.reshape(a, (-1, 1)) for a in tup], 1),
    **{f"atleast_{n}d": functools.partial(_lengthen, getattr(np, f"atleast_{n}d")) for n in (1, 2, 3)}, "pad": _pad,
    **{f.__name__: functools.partial(_split, f) for f in (np.split, np.array_split, np.hsplit, np.vsplit, np.dsplit)},
    **{f.__name__: functools.partial(_move, f) for f in (np.block, np.delete, np.rot90, np.take_along_axis)},
    "flipud": lambda m: np.flip(m, 0), "take": _take, "dstack": lambda tup: _joined(2, tup, 3),
    "meshgrid": lambda *xi, **options: tuple(map(lambda x, places: np.ravel(x)[places], xi, np.meshgrid(
        *[np.arange(np.size(x)) for x in xi], **options))),
    "compress": lambda condition, a, axis=None: np.take(a, np.flatnonzero(condition), axis),
    "rollaxis": lambda a, axis, start=0: np.transpose(a, np.rollaxis(np.empty(range(np.ndim(a))), axis, start).shape),
    # Functions whose values come from NumPy.
    """all allclose angle any argmax argmin argpartition argsort argwhere around array_equal array_equiv bitwise_and
    bitwise_or bitwise_xor ceil count_nonzero empty_like equal fix flatnonzero floor floor_divide greater
    greater_equal imag invert isclose iscomplex iscomplexobj isfinite isin isinf isnan isneginf isposinf isreal
    isrealobj less less_equal logical_and logical_not logical_or logical_xor ndim nonzero not_equal ones_like
    result_type rint round searchsorted shape sign signbit size trunc zeros_like""": None,
}.items():
    for name in names.split():
        with contextlib.suppress(AttributeError):  # NumPy's releases differ
            _row(op.attrgetter(name)(np), _Function).expression = expression
# fmt: on


# --- Gradients of functions -------------------------------------------------------------------------------------------
# Here the variables are a function's arguments. Each call puts fresh nodes between the arguments and what it computes,
# and stops at these on the way back. So calls nest, to derivatives of any order, and no variable is taken for another.


_variable = _Row(lambda x: x, [lambda g, _out, _x: g])


class _Call:
    """One call of f with variables for some of its arguments: what it returns, and the ways back from there.

    What comes of it is a Tensor if it depends on more than these variables, on other Tensors that require gradients.
    """

    def __init__(self, f, argnums, args, options):
        self.values: dict[int, Any] = {}  # of the variables, by the order of their nodes
        self.is_open = False  # whether there are other Tensors, as far as is known
        n, chosen = len(args), tuple(_leaves(argnums))
        variables = {i % n: _map(self.variable, args[i]) for i in chosen if -n <= i < n}
        if len(variables) < len(chosen):
            raise ValueError(f"argnums must be different positions of {n} arguments, not {argnums}")
        self.chosen = _map(lambda i: args[i], argnums)
        with contextlib.nullcontext() if _thread.recording else _set("recording", True):
            self.out = _map(_as_tensor, f(*[variables.get(i, x) for i, x in enumerate(args)], **options))
        _seen(self.out, f"the result of {getattr(f, '__name__', 'f')}")
        results, own = _leaves(self.out), any(map(_is_foreign, self.values.values()))
        if not own and any(map(_is_foreign, results)) and not any([t._node for t in results]):
            raise TypeError("no gradient can be followed into X.dot(w) of another library: call np.dot(X, w) and so on")

    def variable(self, x):
        """An argument as a Tensor with a fresh node, whose parent is the node that it had."""
        t = _seen(_as_tensor(float(x) if type(x) is int else x), "a variable")
        t, order = t.astype(float) if t.dtype.kind in "iu" else t, _next_order()
        _check(t.dtype.kind == "f", "bool data cannot require gradients: give floats, 3.0 or .astype(float)", TypeError)
        self.is_open = self.is_open or (t.requires_grad and _thread.recording)
        self.values[order] = value = t._value if t.__class__ is Tensor else t._at(None)
        return _wrap(value, (order, _variable, (t._node,), (value,), value, None))

    def gradients(self, root, g, create_graph=False):
        """For each variable, what comes back to it from a node, or None, with the gradient g."""
        found = _backward(root, g, create_graph or self.is_open, stop=min(self.values, default=0))[0] if root else {}
        if not self.is_open and _thread.recording and found.keys() - self.values.keys():
            self.is_open = True  # which only the way back told: once more, and recorded
            return self.gradients(root, g)
        return [_own(found, order) if order in found else np.zeros_like(x) for order, x in self.values.items()]

    def finished(self, t):
        """A Tensor if it depends on other Tensors, else an array that nobody else has."""
        if isinstance(t, Tensor) and not (self.is_open and t.requires_grad and _thread.recording):
            t = t._value if t.__class__ is Tensor else t._at(None)
            t = t.copy() if isinstance(t, np.ndarray) else t  # f may return what others have
        return np.asarray(t) if isinstance(t, (np.generic, float)) else t

    def value_and_gradient(self):
        """What ``value_and_grad`` returns."""
        if getattr(self.out, "size", 0) != 1:
            raise ValueError(f"f must return one number, not {_map(np.shape, self.out)}: .sum() it, or take jacobian()")
        gradients = self.gradients(self.out._node, _one(_as_array(self.out._value)))
        return self.finished(self.out), _filled(self.chosen, map(self.finished, gradients))

    def jacobian(self):
        """What ``jacobian`` returns: row by row, each the gradient of one entry of a result."""

        def of(out):
            ones = np.eye(out.size, dtype=out.dtype).reshape(out.size, *out.shape)
            rows = zip(*[self.gradients(out._node, one) for one in ones], strict=True)
            each = [np.stack(x) for x in rows] or [np.stack([x])[:0] for x in self.gradients(None, 1)]  # of no entries
            return _filled(self.chosen, [self.finished(x.reshape(out.shape + x.shape[1:])) for x in each])

        return _map(of, self.out)


def _derivative(f, argnums, finish):
    """A function of f's arguments that finishes a call of f; an argument in the place of argnums is refused at once."""
    fits = callable(f) and all([isinstance(i, (int, np.integer)) and type(i) is not bool for i in _leaves(argnums)])
    what = f"not {type(argnums if callable(f) else f).__name__}: write grad(f)(x), or grad(f, argnums=0)(x)"
    _check(fits, f"grad() and its relatives take a function and positions of its arguments, ints, {what}", TypeError)
    return functools.wraps(f)(lambda *args, **options: finish(_Call(f, argnums, args, options)))


def value_and_grad(f: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    """A function that returns what f returns, one number, and its gradient.

    Parameters
    ----------
    f : a function of arrays, which get to it as Tensors; it may call ``grad`` itself, and so on.
    argnums : the position of the argument to differentiate by, or a tuple of several. These arguments are numbers,
        arrays of numbers or Tensors, or nested tuples, lists and dicts of such. Integers are taken as float64.

    Returns
    -------
    A function of the same arguments. It returns the value, an array, and the gradient, an array of the argument's shape
    and dtype or a structure of such; for a tuple ``argnums`` a tuple of gradients. What depends on other Tensors that
    require gradients is a Tensor. A Python float takes the dtype of what it meets, as in NumPy.

    Raises
    ------
    TypeError, ValueError : for arguments that are no numbers, for ``argnums`` that name none, and for an f that returns
        more than one number.

    >>> value_and_grad(lambda x: (x**3).sum())(np.array([1.0, 2.0]))
    (array(9.), array([ 3., 12.]))
    """
    return _derivative(f, argnums, _Call.value_and_gradient)


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
    TypeError, ValueError : for arguments that are no numbers, for ``argnums`` that name none, and for an f that returns
        more than one number.

    >>> grad(grad(grad(np.sin)))(0.0)
    array(-1.)
    """
    return _derivative(f, argnums, lambda call: call.value_and_gradient()[1])


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
    TypeError, ValueError : for arguments that are no numbers, and for ``argnums`` that name none.

    >>> jacobian(lambda x: x**2)(np.array([1.0, 2.0]))
    array([[2., 0.],
           [0., 4.]])
    """
    return _derivative(f, argnums, _Call.jacobian)


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
    TypeError, ValueError : for arguments that are no numbers, for ``argnums`` that name none, and for an f that returns
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
    TypeError, ValueError : for what is no tuple, for arguments that are no numbers, and for tangents of another
        structure or shape.

    >>> jvp(lambda x, y: x * y, (2.0, 3.0), (1.0, 10.0))
    (array(6.), array(23.))
    """
    _check(type(args) is type(tangents) is tuple, "jvp() takes two tuples: write (x,) and (v,)", TypeError)
    structure, other = [str(_map(lambda x: _as_tensor(x).shape, (*trees,))) for trees in (args, tangents)]
    _check(structure == other, f"jvp() takes tangents with the structure of the arguments, {structure}, not {other}")
    call, tangents = _Call(f, (*range(len(args)),), args, {}), tuple(map(_as_tensor, _leaves(tangents)))

    def back(us):
        total = _as_tensor(sum([np.sum(out * u) for out, u in zip(_leaves(call.out), _leaves(us), strict=True)]) * 1.0)
        gradients = call.gradients(total._node, _one(_as_array(total._value)), True)
        return sum([np.sum(g * t) for g, t in zip(gradients, tangents, strict=True)])

    moved = grad(back)(_map(lambda out: np.zeros_like(out._value) * 1.0, call.out))
    return _map(call.finished, call.out), moved if any([t._node for t in tangents]) else _map(call.finished, moved)


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
    _check(dict not in map(type, args), "gradcheck takes no dict: write gradcheck(lambda w: f({'w': w}), w)", TypeError)
    floating = tuple([i for i, x in enumerate(args) if np.asarray(_value_of(x)).dtype.kind == "f"])
    _check(floating, "gradcheck got no float argument to check: integers and booleans have no gradient", TypeError)
    tensors = [Tensor(np.array(_value_of(x), float)) if i in floating else x for i, x in enumerate(args)]

    def weighted_sum(*args):
        out = f(*args)
        return np.sum(out * np.random.default_rng(0).uniform(0.5, 1.5, np.shape(out)))

    for i, gradient in zip(floating, grad(weighted_sum, floating)(*tensors), strict=True):
        for entry, found in np.ndenumerate(gradient):
            step = _add_at(_float64(eps), entry, gradient)
            ends = [weighted_sum(*tensors[:i], tensors[i] + s, *tensors[i + 1 :]).item() for s in (step, -step)]
            difference = (ends[0] - ends[1]) / (2 * eps)
            if not math.isclose(found, difference, rel_tol=rtol, abs_tol=atol):
                raise AssertionError(f"argument {i}, entry {entry}: backward {found}, central differences {difference}")
    return True


def _is_finite(*xs):
    """Whether no number in NumPy's arrays is nan or infinite; other things are not looked at."""
    return all(np.isfinite(x).all() for x in map(_value_of, _leaves(xs)) if isinstance(x, (_ndarray, np.number, float)))


def _caller():
    """The newest frame of the program that is not of this file or of NumPy."""
    frame, here = sys._getframe(), (__file__, *np.__path__)
    while frame.f_back and frame.f_code.co_filename.startswith(here):
        frame = frame.f_back
    return frame


class _Anomalies(dict):
    """An observer that looks at results and gradients: the lines of the program, by the order of what they made."""

    def seen(self, tensor, what):
        return tensor

    def compute(self, row, order, compute, args, options, values, named):
        out = compute(*values, **named)
        if _thread.recording and row.vjps and any(getattr(x, "_node", None) for x in args):
            self[order] = f"{(frame := _caller()).f_code.co_filename}, line {frame.f_lineno}"
            self.look(_name(row.function), order, values, out)
        return values, out

    def gradient(self, root, node, i, g, total):
        order, row, _, values, out, _ = node
        self.look(f"the gradient with respect to argument {i} of {_name(row.function)}", order, values, total, g, out)

    def look(self, what, order, values, found, *given):
        """Raise if what was found is not finite, but the operation's values and all else that was given are."""
        if not _is_finite(found) and _is_finite(values, given):
            shapes = " and ".join([str(x.shape) for x in values if hasattr(x, "shape")]) or "()"
            line = self.get(order, "a line outside detect_anomaly(): put the forward pass inside as well")
            raise FloatingPointError(f"{what} of shape {shapes} made nan or infinity of finite numbers: see {line}")


def detect_anomaly() -> contextlib.AbstractContextManager[Any]:
    """Raise where a recorded operation, or ``backward``, first makes nan or infinity: a context manager; per thread.

    It looks at the results of operations on Tensors that require gradients, and at the gradients, which takes time that
    nothing takes without it. A function under ``jit`` runs as it was written.

    Raises
    ------
    FloatingPointError : where finite numbers gave one that is not. It names the operation, the shapes, and the line of
        the program that called it, for a gradient too, if the forward pass was inside. What was nan or infinite before
        is handed on without a word.

    >>> w = Tensor([1.0, 0.0], requires_grad=True)
    >>> with detect_anomaly():
    ...     np.sqrt(w).sum().backward()
    Traceback (most recent call last):
        ...
    FloatingPointError: the gradient with respect to argument 0 of np.sqrt of shape (2,) made nan or infinity ...
    """
    _seen(None, "what detect_anomaly() looks at")
    return _set("observer", _Anomalies() if _thread.observer is None else _thread.observer)


def to_dot(t: Tensor, names: dict[str, Any] | None = None) -> str:
    """The graph behind a Tensor as text for Graphviz, for ``dot -Tsvg`` or ``graphviz.Source(text)`` in a notebook.

    Parameters
    ----------
    t : the result. Its operations are boxes with their shapes and dtypes, and values where these are few; leaves stand
        out, and constants are without a frame.
    names : what to call leaves and constant arrays, ``{"w": w, "x": x}``.

    Raises
    ------
    TypeError : for what is no Tensor.

    Notes
    -----
    After ``t.backward()`` leaves show their ``.grad``.

    >>> w = Tensor(3.0, requires_grad=True)
    >>> print(to_dot(w * 2, names={"w": w}))
    digraph {
      node [shape=box, fontname=monospace]
      n0 [label="np.multiply\\n() float64\\n6."]
      n1 [label="w\\n() float64\\n3.", style=filled, fillcolor=lightblue]
      n2 [label="2", shape=plain]
      n1 -> n0
      n2 -> n0
    }
    """
    _check(isinstance(t, Tensor), f"to_dot() takes a Tensor, not {type(t).__name__}: give it the result", TypeError)
    called: Any = {id(getattr(x, "_node", None) or _value_of(x)): name for name, x in dict(names or {}).items()}
    # Each node and each array is drawn once, under the node or the array itself, and a Python number at every use.
    drawn, boxes, edges, ahead = dict[Any, str](), list[str](), list[str](), list[Any]([(t._node, t._value, None)])
    for node, x, user in ahead:  # which grows on the way
        key = id(node or x) if node or hasattr(x, "shape") else object()
        if key not in drawn:
            drawn[key] = name = f"n{len(drawn)}"
            row = node and node[1]
            what = f"{_name(row.function)} {node[5] or ''}".rstrip() if row else called.get(key, node and "leaf")
            style = "" if row else ", style=filled, fillcolor=lightblue" if node else ", shape=plain"
            ahead += [(*argument, name) for argument in zip(node[2], node[3], strict=True)] if row else []
            label = [what, f"{x.shape} {x.dtype}" if hasattr(x, "shape") else repr(x)]
            for before, numbers in ("", x), ("gradient ", node and not row and _value_of(node[2][0])):
                if isinstance(numbers, (np.ndarray, np.generic)) and numbers.size <= 12:
                    label.append(before + np.array2string(np.asarray(numbers), precision=4, separator=", "))
            text = "\n".join(filter(None, label)).translate({ord("\\"): r"\\", ord('"'): r"\"", ord("\n"): r"\n"})
            boxes.append(f'  {name} [label="{text}"{style}]')
        edges.append(f"  {drawn[key]} -> {user}")
    return "\n".join(["digraph {", "  node [shape=box, fontname=monospace]", *boxes, *edges[1:], "}"])


# --- jit --------------------------------------------------------------------------------------------------------------
# While jit runs a function for the first time, an observer notes each call to NumPy, those that rules make too, as a
# line, and the Tensors of the function carry their lines. What is noted, less what is dead, double or trivial, is
# printed as one plain NumPy function.

import ast
import collections
import keyword


class _Line:
    """A value in the generated function: a parameter (``function`` is None), or the NumPy call that makes it.

    Shape and dtype are None for what is no array. ``weak`` marks a Python number.
    """

    def __init__(self, function, args, options, like):
        self.function, self.args, self.options, self.like = function, args, options, like
        self.shape, self.dtype, self.weak = like
        self.ndim, self.size, self.name = len(self.shape or ()), math.prod(self.shape or ()), ""


class _Refusal(BaseException):
    """What jit cannot follow, a TypeError in the end; no Exception, as it comes even if a function catches those."""


def _like(x):
    """The shape and the dtype of a line with this value, and whether it is a Python number."""
    known = type(x) in _python or isinstance(x, (np.ndarray, np.generic))
    return (np.shape(x), np.asarray(x).dtype, type(x) in _python) if known else (None, None, False)


class _Traced(Tensor):
    """A Tensor that carries its line, while the function is traced."""

    def __init__(self, trace, line, value, node=None):
        self._trace, self.line, self.value, self._node = trace, line, value, node

    @property
    def _value(self):
        _check(_thread.observer is self._trace, "a Tensor of jit() was used outside: return it instead", TypeError)
        return self.value

    def _at(self, node):
        return _Traced(self._trace, self.line, self.value, node)

    def __repr__(self):
        return f"<of shape {self.shape}, traced>"


# fmt: off
_patterns: dict[Any, str] = {op.getitem: "{}[{}]", np.negative: "(-{})", **{f: f"({{}} {sign} {{}})" for f, sign in {
    np.add: "+", np.subtract: "-", np.multiply: "*", np.divide: "/", np.power: "**", np.remainder: "%", np.matmul: "@",
    np.equal: "==", np.not_equal: "!=", np.less: "<", np.less_equal: "<=", np.greater: ">", np.greater_equal: ">=",
    np.floor_divide: "//", np.bitwise_and: "&", np.bitwise_or: "|", np.bitwise_xor: "^"}.items()}, np.invert: "(~{})"}
# fmt: on
_of_numbers = np.add, np.subtract, np.multiply, np.negative  # of Python's numbers too
_plain_types = int, bool, str, type(None)  # written as their repr
_neutral: dict[Any, int] = {np.multiply: 1, np.divide: 1, np.power: 1, np.subtract: 0}
_reshape, _transpose = np.ndarray.reshape, np.ndarray.transpose  # what all that does the same becomes
_reshapes = {np.reshape, np.ravel, np.squeeze, np.expand_dims, np.atleast_1d, np.atleast_2d, np.atleast_3d}
_viewing = {None, _reshape, *_reshapes, op.getitem, np.broadcast_to}  # of arrays in some orders in memory at least
_transposes = {np.transpose, np.swapaxes, np.moveaxis, np.matrix_transpose, np.linalg.matrix_transpose}
_reductions = {np.sum, np.mean, np.max, np.min, np.prod}
_methods = {*_reductions, np.any, np.all, np.argmax, np.argmin, np.cumsum, _reshape, _transpose, _astype}
_of_elements = {np.where, np.take, np.take_along_axis, np.clip, np.full_like, np.isclose, np.allclose}
_of_elements |= {np.array_equal, np.array_equiv, np.isin, np.dot, np.inner, np.outer, np.vdot, np.kron, np.tensordot}
_of_elements |= {np.einsum, np.cross, np.average, np.linalg.solve, np.linalg.matmul, np.linalg.tensordot}
_of_elements |= {np.select, np.meshgrid, np.append, np.convolve, np.interp, np.searchsorted, np.linalg.lstsq}
_sized_by_values = {(np.argwhere, 1), (np.flatnonzero, 1), (np.nonzero, 1), (np.where, 1)}  # with so many arguments


def _literal(x):
    """The text of what may stand in the source: its repr if it is of exactly these types, or NumPy's name for it."""
    if type(x) in (*_plain_types, float, dict):  # the widths of np.pad
        text = repr(x).replace("nan", "np.nan").replace("inf", "np.inf") if type(x) is float else repr(x)
        return f"({text})" if text.startswith("-") else text
    if type(x) is slice:  # as it stands in brackets, for it is nowhere else
        texts = [*map(_literal, (x.start, x.stop, x.step))]
        return None if None in texts else ":".join(texts).replace("None", "")
    if isinstance(x, np.generic) and type(x.item()) in (*_plain_types, float):  # a longdouble's item is one again
        return f"{_literal(x.dtype)}({_literal(x.item())})"
    x = x.type if isinstance(x, np.dtype) and x == np.dtype(x.type) else x
    name = _name(x).replace("np.absolute", "np.abs") if callable(x) else ""
    with contextlib.suppress(AttributeError):
        return "..." if x is ... else name if name.startswith("np.") and op.attrgetter(name[3:])(np) is x else None


def _plain_text(text):
    """A text without the parentheses that it does not need."""
    return ast.unparse(ast.parse(text))


class _Trace:
    """What is noted while a function runs once, and the text that comes of it."""

    def __init__(self):
        # By what they say, so that nothing is said twice; and of what the function reads from outside, by its id.
        self.lines: dict[Any, _Line] = {}
        # Of what line with respect to which, by the order of nodes, the line that is the gradient.
        self.slopes: dict[Any, dict] = collections.defaultdict(dict)
        self.texts: dict[_Line, str] = {}  # of each line its name, or its call where that stands in for it
        self.names = collections.Counter({"np", "float", "NotImplemented", *keyword.kwlist})  # how often asked for
        self.taken: dict[_Line, bool] = {}  # of each line whether others may have its memory too

    # What an observer is told

    def seen(self, tensor, what):
        if what in ("detach()", "a variable", "an operand"):
            return tensor if isinstance(tensor, _Traced) and what != "detach()" else self.given(tensor)
        if what.startswith("the result of "):
            return self.name(tensor, what.removeprefix("the result of ").replace("<lambda>", "f"))
        raise _Refusal(f"jit() runs f once, so it cannot follow {what}: write {_instead.get(what, 'it outside')}")

    def compute(self, row, order, compute, args, options, values, named):
        function, leaves = row.function if row is _table.get(row.function, row) else compute, _leaves((args, options))
        # Beside a Tensor, an array is an axis or a length to NumPy's functions that are no ufuncs. Others read it.
        reads = not hasattr(function, "_implementation")
        given = tuple([self.given(x) if reads or isinstance(x, Tensor) else x for x in args])
        if reads and not isinstance(function, np.ufunc) and function not in (op.getitem, _astype, _add_at, _whole):
            return given, function(*given, **options)  # whose calls of NumPy are noted
        if function is _whole and isinstance(given[0], Tensor):
            return given, np.broadcast_to(given[0].astype(given[1].dtype), given[1].shape)
        # What depends on values: an axis or a length, and the shape of the result.
        others = _leaves((args[function is not np.compress :], options))
        kinds = {x.dtype.kind for x in others if isinstance(x, Tensor)} - {"f"}
        by_values = "b" in kinds if function is op.getitem else kinds and not reads and function not in _of_elements
        if by_values or (function, len(args)) in _sized_by_values:
            self.seen(None, "an index")
        out = compute(*values, **named)
        what = f"jit() cannot follow {_name(function)} that writes into an array: make a new one"
        _check(not any(out is x for x in leaves if isinstance(x, np.ndarray)), what, _Refusal)
        if function in (np.shape, np.ndim, np.size, np.result_type, np.iscomplexobj, np.isrealobj):
            return given, out
        args, options = _map(self.line_of, (tuple(args), options))
        code, near = (frame := _caller()).f_code, frame.f_locals  # which Python puts together anew whenever it is read
        for name in code.co_varnames + code.co_cellvars + code.co_freevars + code.co_names:
            self.name(near.get(name, frame.f_globals.get(name)), name)
        line = self.line(function, args, options, _like(out))
        several, outs = isinstance(out, (tuple, list)), _leaves(out)
        lines = [self.new(op.getitem, (line, i), {}, _like(x)) for i, x in enumerate(outs)] if several else [line]
        return given, _filled(out, map(self.value, lines, outs, itertools.repeat(leaves)))

    def gradient(self, root, node, i, g, total):
        if isinstance(root[4], _Traced) and isinstance(total, _Traced):
            self.slopes[root[4].line, node[3][i].line][node[2][i][0]] = total.line

    # What the lines are of

    def enter(self, x, name):
        """An argument, as a Tensor if it is an array or a float."""
        line = _Line(None, (), {}, _like(None if type(x) in (int, bool) else x))
        self.texts[line] = name
        return x if line.shape is None else _Traced(self, line, x)

    def given(self, x):
        """What an operation gets: for a Tensor or an array one with a line and no node, other things as they are."""
        return _Traced(self, self.line_of(x), _value_of(x)) if isinstance(x, (Tensor, np.ndarray)) else x

    def line_of(self, x, is_text=None):
        """What stands for x in a line: x itself if it may stand in the source, else its line.

        From outside come Tensors, whose values each call reads anew, and things that stay.
        """
        if isinstance(x, _Traced):
            return x._value is not x and x.line  # an error if x is of another trace
        _check(not _is_foreign(x), "jit() generates code for NumPy's arrays: call f itself for others", _Refusal)
        is_leaf = not isinstance(x, Tensor) or x._node is None or x._node[1] is None
        _check(is_leaf, "a computed Tensor from outside would lose its gradient: give it as an argument", _Refusal)
        if is_text or (is_text is None and _literal(x) is not None):
            return x
        return self.lines.setdefault(id(x), _Line(None, (x,), {}, _like(_value_of(x))))

    def value(self, line, out, given):
        """A Tensor for a line; notes whether it may be a view of what was given, or cannot be written to."""
        shares = line.function in _viewing or any(np.may_share_memory(out, _value_of(x)) for x in given)
        self.taken.setdefault(line, shares or not np.asarray(out).flags.writeable)
        return _Traced(self, line, out)

    def name(self, x, name):
        """Name a line as the function that calls NumPy names it."""
        line = x.line if isinstance(x, _Traced) else self.lines.get(id(x))
        if line and not line.name and name.isidentifier():
            line.name = name

    # Simplifying

    def new(self, function, args, options, like):
        """A line as it is, or the older one that says the same."""
        function = self.line_of(function) if isinstance(function, np.ufunc) else function  # one from outside perhaps
        key = function, like, *map(repr, (*args, options))
        return self.lines.setdefault(key, _Line(function, args, options, like))

    def line(self, function, args, options, like):
        """The line of a call, in the simplest form that it has."""
        shape, dtype, _ = like
        x: Any = args[0] if args else None
        # An array that says what kind is wanted is in the line's own shape and dtype.
        args = {_astype: (x, self.line_of(dtype)), _add_at: args[:2], _whole: (x,)}.get(function, args)
        if function is _astype and x.weak:
            function, args = dtype.type, (x,)
        by_order = any(isinstance(a, (_Line, str)) for a in _leaves((args[1:], options)))
        if isinstance(x, _Line) and shape is not None and x.like[1:] == like[1:] and not by_order:
            reduces = function in _reductions and len(args) < 3 and options.keys() <= {"axis", "keepdims"}
            if function in _reshapes or (reduces and x.size == math.prod(shape)):
                function, args, options = _reshape, (x.args[0] if x.function is _reshape else x, *(shape or [()])), {}
            elif function in _transposes:
                inner, order = x.args if x.function is _transpose else (x, range(x.ndim))
                axes = function(np.empty(order), *args[1:], **options).shape
                function, args, options = np.copy if axes == (*range(x.ndim),) else _transpose, (inner, axes), {}
            elif reduces:
                axes = _axes(x, options.get("axis", args[1] if args[1:] else None))
                axis = {} if len(axes) == x.ndim else {"axis": axes if len(axes) > 1 else axes[0]}
                args, options = (x,), axis | ({"keepdims": True} if len(shape) == x.ndim else {})
                if function is np.mean and dtype.char in "fd":
                    total = self.new(np.sum, args, options, like)
                    function, args, options = np.divide, (total, x.size // max(total.size, 1)), {}
            if args[0].shape == shape and function in (_reshape, np.broadcast_to, np.positive, np.copy, _astype):
                return args[0]
        if function is np.where or (isinstance(function, np.ufunc) and not function.signature):
            args = self.thinned([*args], like)
        # What numbers and signs change nothing, or more simply said.
        a, b = args[::-1] if function is np.multiply and type(args[0]) in _python else (None, None, *args)[-2:]
        if function is np.add and isinstance(b, _Line) and b.function is np.negative:
            return self.line(np.subtract, (a, b.args[0]), {}, like)
        is_neutral = type(b) in _python and b == _neutral.get(function) and math.copysign(1, b) == 1
        if function is np.power and type(b) is int and b == 0 and not like[2]:
            return self.new(_whole, (1,), {}, like)
        return a if is_neutral and getattr(a, "like", None) == like else self.new(function, args, options, like)

    def thinned(self, args, like):
        """The arguments of an elementwise function, without what broadcasting does to them anyway."""
        for i, a in enumerate(args):
            others = [b for b in (*args[:i], *args[i + 1 :]) if isinstance(b, _Line)]
            if isinstance(a, _Line) and a.function in (_whole, np.broadcast_to, _reshape):
                thin = a.dtype.type(a.args[0]) if a.function is _whole else a.args[0]  # a number keeps the dtype
                ends_alike = a.function is not _reshape or thin.shape == a.shape[a.ndim - thin.ndim :]
                is_same = ends_alike and (thin.dtype, getattr(thin, "weak", False)) == a.like[1:]
                if is_same and np.broadcast_shapes(*[b.shape or () for b in (*others, thin)]) == like[0]:
                    args[i] = a = thin
            if isinstance(a, np.floating) and any(b.dtype == a.dtype and not b.weak for b in others):
                args[i] = int(a) if a.is_integer() and 0 < abs(a.item()) < 2**53 else a.item()
        return tuple(args)

    def returned(self, x):
        """The line of a result: of a copy, where others may have its memory, the arguments or another result."""
        line = self.line_of(x, is_text=type(x) in _plain_types)
        if isinstance(line, _Line) and line.shape is not None and (line.weak or self.taken.get(line, True)):
            copy = line.dtype.type if line.weak else np.copy
            line = self.lines[object()] = _Line(copy, (line,), {}, (*line.like[:2], False))
        self.taken[line] = True
        return line

    # Printing

    def unique(self, name, other="c"):
        """The name, or another for what is none, with a number if it is taken."""
        name = str.__str__(name) if str.isascii(name) and str.isidentifier(name) and name[0] != "_" else other
        self.names[name] += 1
        return name if self.names[name] == 1 else self.unique(f"{name}_{self.names[name]}")

    def show(self, x):
        """The text of an argument."""
        if isinstance(x, (tuple, list)):
            items = "".join([f"{self.show(item)}, " for item in x])
            return f"[{items}]" if isinstance(x, list) else items if slice in map(type, x) else f"({items})"
        return self.texts[x] if isinstance(x, _Line) else _literal(x)

    def text(self, line):
        """The call of a line, in the texts of its arguments."""
        function, args, options, show = line.function, line.args, line.options, self.show
        of_python = all(a.weak if isinstance(a, _Line) else type(a) in _python for a in args)
        of_bools = function is np.power and line.dtype.itemsize > 1 and getattr(args[0], "dtype", None) == np.bool
        # Between Python's numbers, and in powers of booleans, most operators do not do as NumPy's functions.
        if function in _patterns and not of_bools and (not of_python or (line.weak and function in _of_numbers)):
            return _patterns[function].format(*map(show, args))
        if function in (_whole, _add_at):
            fill = line.dtype.type(args[0] if function is _whole else 0)
            if function is _whole and not line.shape:
                return show(fill)
            function, args = (np.full, (line.shape, fill.item())) if fill else (np.zeros, (line.shape,))
            options = {"dtype": line.dtype}
        if function is _transpose and args[1] == (*reversed(range(line.ndim)),):
            return f"{show(args[0])}.T"
        is_method = function in _methods and args and isinstance(args[0], _Line) and not args[0].weak
        rest = [f"np.s_[{show(a)}]" if type(a) is slice else show(a) for a in args[bool(is_method) :]]
        rest += [f"{key}={show(a)}" for key, a in options.items()]
        name = f"{show(args[0])}.{function.__name__.lstrip('_')}" if is_method else show(function)
        text = f"{name}({', '.join(rest)})"
        return f"float({text})" if line.weak and line.dtype == np.float64 else text

    def body(self, results):
        """The statements that compute some lines."""
        needed = collections.Counter(results)
        for line in filter(needed.__contains__, reversed(self.lines.values())):
            needed.update([x for x in _leaves((line.function, line.args, line.options)) if isinstance(x, _Line)])
        self.texts |= {x: self.unique(x.name) for x in self.lines.values() if x.function is None and x in needed}
        statements, is_back, heading = list[str](), False, iter(["", "# Backward"])
        slopes = [(step, {*parts.values()}) for step, parts in self.slopes.items()]
        steps = {lines.pop(): step for step, lines in reversed(slopes) if len(lines) == 1}  # else they are parts of it
        for line in filter(op.attrgetter("function"), self.lines.values()):
            of, to = steps.get(line, (None, None))
            step = [self.texts[of], self.texts.get(to, "...")] if of in self.texts else []  # else it is older
            is_back = is_back or bool(step)
            name = line.name or (f"d{step[1]}" if step and step[1].isidentifier() else "")
            call = self.text(line) if line in needed else self.unique(line.name) if line.name else "..."
            if line not in needed or not (name or needed[line] > 1 or len(call) > 40 or line.function is _add_at):
                self.texts[line] = call
                continue
            self.texts[line] = name = self.unique(name or "tg"[is_back])
            step = [x if x.isidentifier() else f"({_plain_text(x)})" if 3 < len(x) < 40 else "..." for x in step]
            comment = f"d {' / d '.join(step)}, " * bool(step) + str(line.shape).replace("None", "several arrays")
            statements += heading if is_back else []  # the first time
            statements.append(f"{name} = {_plain_text(call)}  # {comment}")
            if line.function is _add_at:
                values, index = map(self.show, line.args)
                once, at = _is_basic(line.args[1]), index if isinstance(line.args[1], _Line) else f"np.s_[{index}]"
                added = f"{name}[{index}] = {values}" if once else f"np.add.at({name}, {at}, {values})"
                statements.append(_plain_text(added))
        return statements


def _argument(x):
    """An argument as generated functions take it: arrays as NumPy's, numbers as scalars, other things as they are."""
    value = _as_value(_value_of(x))[()] if hasattr(type(x), "__array__") else x
    is_taken = type(x) in (np.ndarray, np.memmap) or isinstance(x, (np.generic, Tensor)) or _is_foreign(x)
    _check(value is x or is_taken, f"jit() takes no {type(x).__name__}: give .to_numpy() or np.asarray()", TypeError)
    return value


def _signature(x):
    """What of an argument is taken as fixed. It tells things apart that are equal but differ within, too."""
    if type(x) is float or hasattr(type(x), "__array__"):
        return getattr(x, "shape", None) or type(x), getattr(x, "dtype", None)
    if isinstance(x, _structures):
        items = x.items() if isinstance(x, dict) else enumerate(x)
        return type(x), *[(type(key), repr(key), key, _signature(item)) for key, item in items]
    return type(x), repr(x), None if type(x) is slice else x  # which Python refuses as a key if it has no hash


def _function_text(name, parameters, lines):
    return "\n".join([f"def {name}({', '.join(parameters)}):", *[f"    {line}".rstrip() for line in lines], ""])


def _defined(name, parameters, lines, scope):
    """The function of these lines."""
    exec(compile(_function_text(name, parameters, lines), f"<jit {name}>", "exec"), scope)
    return scope[name]


def _generate(f, args, options):
    """What jit makes of f for arguments of one kind.

    They are the text of a module; ``lower()``, the function in it, given what that reads from outside; and ``run``,
    which takes the leaves of arguments too, but returns what f does, with 0-d arrays for numbers, or NotImplemented for
    leaves of another kind, which it does not look for if they are known to be of this one.
    """
    trace, named, given = _Trace(), {"x": args}, _leaves((args, options))
    with contextlib.suppress(ValueError, TypeError):  # of functions in C, and of calls that f will refuse
        named = inspect.signature(f).bind_partial(*args).arguments
    parameters = [trace.unique(name) for name, x in (*named.items(), *options.items()) for _ in _leaves(x)]
    args, options = _filled((args, options), map(trace.enter, given, parameters))
    try:
        with _set("observer", trace), _set("recording", True):
            out = _map(trace.returned, f(*args, **options))
    except _Refusal as refusal:
        raise TypeError(*refusal.args).with_traceback(refusal.__traceback__) from None

    # The module, and the function in it.
    results = _leaves(out)
    arrays = [x for x in results if isinstance(x, _Line) and x.shape is not None]
    statements, texts = trace.body(results), [_plain_text(trace.show(x)) for x in results]
    shapes = [] if any(trace.texts[x].isidentifier() for x in arrays) else [str(x.shape) for x in arrays]
    last = f"return {', '.join(texts)}" + f"  # {', '.join(shapes)}" * bool(shapes)
    known = {text: line for line, text in trace.texts.items() if line.function is None}  # given, or read from outside
    facts = ", ".join([f"{text} {'is fixed' if line.shape is None else line.shape}" for text, line in known.items()])
    name = _Trace().unique(getattr(f, "__name__", ""), "function")  # which may be that of a variable, too
    text = _function_text(name, known, [f"# For {facts or 'no arguments'}", *statements, last])

    # The function for all calls: checks of the leaves, and the same statements.
    scope = {"np": np, "_array": np.ndarray, "_signature": _signature, "_filled": _filled}

    def bind(x):
        scope[name := f"_{len(scope)}"] = _as_value(x) if hasattr(type(x), "to_numpy") else x
        return f"{name}._value" if isinstance(x, Tensor) else name

    inside = [*[f"{text} = {bind(*line.args)}" for text, line in known.items() if line.args], *statements]
    lower = functools.cache(lambda: _defined(name, parameters, [*inside, last], scope))

    def check(p, x):
        if isinstance(x, np.ndarray):
            return f"{p}.__class__ is _array and {p}.shape == {x.shape} and {p}.dtype == {bind(x.dtype)}"
        if isinstance(x, np.generic):  # a 0-d array is one too
            return f"({p} := {p}[()] if {p}.__class__ is _array else {p}).__class__ is {bind(type(x))}"
        return f"{p}.__class__ is float" if type(x) is float else f"_signature({p}) == {bind(_signature(x))}"

    trace.texts |= {x: f"({trace.texts[x]}).__array__()" for x in arrays if x.shape == ()}
    returned = trace.show(out) if _is_tuples(out) else f"_filled({bind(out)}, iter({trace.show(results)}))"
    ways = [*[f"{p}=NotImplemented" for p in parameters], "*_rest", "_known=False"]
    guard = f"if not (_known or {' and '.join(['not _rest', *map(check, parameters, given)])}): return NotImplemented"
    return f"import numpy as np\n\n\n{text}", lower, _defined(name, ways, [guard, *inside, f"return {returned}"], scope)


def _is_tuples(tree):
    return not isinstance(tree, _structures) or (type(tree) is tuple and all(map(_is_tuples, tree)))


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
        and returns NumPy's scalars for numbers. Tensors and arrays from outside it has with it. Of structures it takes
        and returns the leaves alone, one by one.
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
    TypeError : for objects of pandas, subclasses of NumPy's arrays and the like, to which functions may mean something
        else: give ``.to_numpy()``, or ``np.asarray()`` of it. For what depends on values and would be fixed: ``if`` of
        a Tensor, ``float``, ``.item()``, ``.data``, ``np.asarray``, a mask as an index, ``backward()``. It says what to
        write instead. And for arguments without a hash.

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
    latest, hits = None, 0  # what ran last, if calls like that may be tried without a key, and how often that did
    kinds: Any = functools.lru_cache(128)(lambda _: [])  # of each kind what was generated, once that is done

    def find(args, options):
        args, options = _map(_argument, (args, options))
        kind = kinds(_signature((args, options)))
        kind[:] = kind or _generate(f, args, options)
        return *kind, _leaves((args, options))

    @functools.wraps(f)
    def jitted(*args, **options):
        nonlocal latest, hits
        if latest and not _detours and not options and (out := latest(*args)) is not NotImplemented:
            hits += 1
            return out
        leaves, observed = _leaves((args, options)), _thread.observer is not None
        recorded = _thread.recording and any(isinstance(x, Tensor) and x._node for x in leaves)
        if not (recorded or observed or any(map(_is_foreign, leaves))):
            *_, run, values = find(args, options)
            latest = run if not options and [*map(id, leaves)] == [*map(id, args)] else latest
            return run(*values, _known=True)
        return f(*args, **options)

    jitted.source = lambda *args, **options: find(args, options)[0]  # type: ignore[attr-defined]
    jitted.lower = lambda *args, **options: find(args, options)[1]()  # type: ignore[attr-defined]
    jitted.cache_info = lambda: (info := kinds.cache_info())._replace(hits=info.hits + hits)  # type: ignore
    return jitted
