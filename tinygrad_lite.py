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

The file in reading order: recording (what an operation leaves behind), Tensor, the table of derivative rules, backward,
SGD, tools. The table is the heart: one row per NumPy function, each rule written once, in ordinary NumPy.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import inspect
import itertools
import math
import numbers
import operator
import threading
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = ["SGD", "Tensor", "defvjp", "gradcheck", "no_grad", "relu", "sigmoid"]
__version__ = "0.1.0"


# --- Recording --------------------------------------------------------------------------------------------------------
# An operation on Tensors runs on their plain values and leaves a Node behind: which function ran, on what, and whose
# gradients it can pass on. Nodes point to their parents, never back, so that a graph is freed with its last Tensor.
# (A Tensor, the class of the next section, is a value and its node, or None for a constant.)


_next_order = itertools.count(0, -1).__next__


class _Node:
    """What one operation leaves behind for ``backward``, or (without a ``row``) a leaf and its gradient.

    The values are those that the operation saw: what an optimizer does to a leaf later changes none of them.
    """

    __slots__ = ("grad", "options", "order", "out", "parents", "row", "values")

    def __init__(self, row, parents, values, out, options=None):
        self.order = _next_order()  # the newest node has the smallest number, so that a heap gives it first
        self.row = row
        self.parents = parents  # the nodes of the arguments, None for an argument that requires no gradient
        self.values = values
        self.out = out
        self.options = options
        if row is None:
            self.grad = None

    def forget(self):
        """Keep of the arrays that the rules will not read no more than shape and dtype."""
        reads = [read for read, parent in zip(self.row.reads, self.parents, strict=False) if parent is not None]
        keep = [*map(any, itertools.zip_longest(*reads, fillvalue=True)), *[True] * len(self.values)]
        self.out, *self.values = [
            value if kept or value.__class__ is not _ndarray else _Shape(value.shape, value.dtype, value.ndim)
            for value, kept in zip((self.out, *self.values), keep, strict=False)
        ]


_Shape = collections.namedtuple("_Shape", "shape dtype ndim")  # what a node keeps of an array that no rule will read


class _Row:
    """A row of the table: a function and one way to differentiate it.

    A rule has ``vjps`` (vector-Jacobian products, see the table), one per positional argument; a re-expression has
    ``expression``, the same function said in other functions of the table; a constant has neither, and its result
    carries no gradient. ``compute`` is the quickest way to the value of a rule. ``arity`` is the number of arguments
    that need no ``check`` if they come without options, ``checked`` holds the other ways to call that have passed it.
    """

    __slots__ = ("arity", "checked", "compute", "expression", "function", "reads", "vjps")

    def __init__(self, function):
        self.function = function
        self.define()

    def define(self, vjps=(), expression=None):
        for vjp in vjps:
            if vjp is not None and not callable(vjp):
                raise TypeError(f"a rule of {_name(self.function)} must be a function or None, not {vjp!r}")
        self.vjps: tuple[Callable | None, ...] = vjps if any(vjps) else ()
        self.expression: Callable | None = expression
        self.compute: Callable = self.function
        self.arity, self.checked = len(vjps) if all(vjps) else -1, set()
        # For each rule, which of the result and the arguments it reads: those without an underscore in front.
        names = [list(inspect.signature(vjp).parameters)[1:] if vjp else [] for vjp in vjps]
        self.reads = [[not name.startswith("_") for name in rule] for rule in names]

    def check(self, nodes, args, options):
        """Refuse what no rule here would see: arguments without a VJP, and options that NumPy has but the rule not."""
        way = (*[node is not None for node in nodes], *options)
        if way in self.checked:
            return
        for node, vjp, i in itertools.zip_longest(nodes, self.vjps, range(len(nodes))):
            if node is not None and vjp is None and self.expression is None:
                raise TypeError(f"{_name(self.function)} has no derivative rule for argument {i}: detach() that one")
        rule, before = (self.expression, ()) if self.expression else (next(filter(None, self.vjps)), ("g", "out"))
        try:
            inspect.signature(rule).bind(*before, *args, **options)
        except TypeError as error:
            raise TypeError(f"{_name(self.function)} of a Tensor that requires gradients: {error}") from None
        self.checked.add(way)


_table: dict[Callable, _Row] = {}


class _Thread(threading.local):
    recording = True


_thread = _Thread()


@contextlib.contextmanager
def _recording(on: bool) -> Iterator[None]:
    before, _thread.recording = _thread.recording, on
    try:
        yield
    finally:
        _thread.recording = before


def no_grad() -> contextlib.AbstractContextManager[None]:
    """Record nothing within: a context manager, or a decorator when called (``@no_grad()``); per thread.

    As a decorator it is for plain functions: in a generator function, put the ``with`` inside.

    >>> w = Tensor(3.0, requires_grad=True)
    >>> with no_grad():
    ...     print((w * 2).requires_grad)
    False
    """
    return _recording(False)


def _name(function):
    module = getattr(function, "__module__", None) or "numpy"
    name = getattr(function, "__name__", repr(function)).lstrip("_")
    return f"np{module[5:]}.{name}" if module.split(".")[0] == "numpy" else f"{module}.{name}"


def _as_value(data):
    """What a Tensor holds: an array or NumPy scalar of booleans, integers or floats.

    Arrays of other kinds are kept as they are if they answer NumPy's protocols.
    """
    if isinstance(data, Tensor):
        if data._node is not None:
            raise TypeError("a Tensor made of a Tensor would lose its gradient: use it as it is, or its .detach()")
        return data._value
    is_array = hasattr(type(data), "__array_function__") and hasattr(type(data), "__array_ufunc__")
    # Only a subclass is asked, because NumPy imports its ma when somebody names it.
    if isinstance(data, np.ndarray) and type(data) is not np.ndarray and isinstance(data, np.ma.MaskedArray):
        raise TypeError("a Tensor of a masked array would lose the mask: fill it first, with data.filled(value)")
    value = data if is_array and not isinstance(data, np.ndarray) else np.asarray(data)
    if value.dtype.kind not in "biuf":
        raise TypeError(_unfit(value.dtype, "a Tensor"))
    return value if is_array or value.ndim else value[()]


def _unfit(dtype, what):
    advice = "take its real part" if dtype.kind == "c" else "convert it first, with data.astype(float) say"
    return f"{what} holds booleans, integers or floats, not data of dtype {dtype}: {advice}"


def _as_operand(data):
    """What arithmetic takes: Python's numbers as they are, arrays and lists; else NotImplemented, as Python expects."""
    if isinstance(data, (int, float)):
        return data
    return _as_value(data) if hasattr(data, "__array__") or isinstance(data, (complex, list, tuple)) else NotImplemented


def _explained(function, values, error):
    """NumPy's ValueError with the operation and the shapes that it met."""
    shapes = " and ".join(str(value.shape) for value in values if hasattr(value, "shape"))
    return ValueError(f"{_name(function)} of shapes {shapes}: {str(error).strip()}")


_new, _float64, _ndarray = object.__new__, np.float64, np.ndarray  # looked up once, as every operation needs them
_LARGE = 10_000  # elements: below that, an array is not worth forgetting


def _wrap(value, node):
    """A Tensor from within: of a value that is known to be one, and its node or None."""
    tensor = _new(Tensor)
    tensor._value = value
    tensor._node = node
    return tensor


# The classes of operands and of arguments that need no look before NumPy gets them.
_numbers = {bool, int, float, np.float64, np.float32}
_plain = _numbers | {np.ndarray, slice, type(None)}


def _apply(function, *args, **options):
    """Call a function of the table on the values of its arguments, and record the call if one requires gradients.

    Every operation passes through here, but for the operators of two operands, which ``_operator`` specialises.
    """
    row = _table.get(function)
    if row is None:
        name = _name(function)
        raise TypeError(f"{name} has no derivative rule: add one with defvjp({name}, ...), or give it t.detach().data")
    nodes, values, recorded = [], [], False
    for arg in args:
        node = None
        if isinstance(arg, Tensor):
            node, arg = arg._node, arg._value
            if node is not None:
                recorded = _thread.recording and bool(row.vjps or row.expression)
        elif arg.__class__ in (list, tuple):
            if any(isinstance(item, Tensor) for item in arg):
                raise TypeError(f"{_name(function)} takes no list of Tensors: give a function of each of them a rule")
        elif arg.__class__ not in _plain and hasattr(arg, "to_numpy"):
            arg = _as_value(arg)
        nodes.append(node)
        values.append(arg)
    if options and any(isinstance(option, Tensor) for option in options.values()):
        raise TypeError(f"{_name(function)} takes Tensors by position, not by keyword")
    if recorded and (options or len(args) != row.arity):
        row.check(nodes, args, options)
    if recorded and row.expression:
        return row.expression(*args, **options)
    try:
        out = row.compute(*values, **options) if recorded else function(*values, **options)
    except ValueError as error:
        raise _explained(function, values, error) from None
    if recorded and out.__class__ is float:
        out = _float64(out)
    if not hasattr(out, "dtype"):
        if recorded:
            raise TypeError(f"{_name(function)} gave a {type(out).__name__}: what has a rule must return one array")
        return out
    kind = out.dtype.kind
    if kind not in "biuf":
        raise TypeError(_unfit(out.dtype, f"the result of {_name(function)}, a Tensor,"))
    if not recorded or kind != "f":
        return _wrap(out, None)
    node = _Node(row, nodes, values, out, options)
    if values[0].__class__ is _ndarray and values[0].size >= _LARGE:
        node.forget()
    return _wrap(out, node)


def _operator(function, compute) -> tuple[Callable[[Any, Any], Tensor], Callable[[Any, Any], Tensor]]:
    """The two methods ``x op y`` and ``y op x`` of Tensor: ``_apply`` for a rule of two operands, without its loops.

    Python's own operator computes the value: on NumPy scalars it is many times faster than the ufunc.
    """
    row = _table.setdefault(function, _Row(function))

    def forward(x, y):
        x_node = y_node = None
        if isinstance(x, Tensor):
            x_node, x = x._node, x._value
        elif x.__class__ not in _numbers:
            x = _as_operand(x)
        if isinstance(y, Tensor):
            y_node, y = y._node, y._value
        elif y.__class__ not in _numbers:
            y = _as_operand(y)
        if x is NotImplemented or y is NotImplemented:
            return NotImplemented
        try:
            out = compute(x, y)
        except ValueError as error:
            raise _explained(function, (x, y), error) from None
        if (x_node is y_node is None) or not _thread.recording or not row.vjps:
            return _wrap(out, None)
        if row.arity != 2:
            row.check((x_node, y_node), (x, y), {})
        node = _Node(row, (x_node, y_node), (x, y), out)
        if out.__class__ is _ndarray and out.size >= _LARGE:
            node.forget()
        return _wrap(out, node)

    return forward, lambda y, x: forward(x, y)


def _method(function) -> Callable[..., Tensor]:
    """A function of the table as a method of Tensor, with the arguments that NumPy's function takes."""

    def method(self, *args, **options):
        return _apply(function, self, *args, **options)

    method.__name__ = function.__name__
    method.__doc__ = f"``{_name(function)}`` of this Tensor, with the arguments that it takes after the array."
    return method


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
    dtype : the dtype to convert to; by default the data's own.

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
    _leaf: _Node | None  # of a leaf: its node, also while requires_grad is switched off
    _node: _Node | None
    __hash__ = object.__hash__
    __array_priority__ = __pandas_priority__ = 5000  # array * Tensor and Series * Tensor are the Tensor's business

    def __init__(self, data: Any, requires_grad: bool = False, dtype: DTypeLike | None = None):
        self._value = _as_value(data)
        if dtype is not None:
            self._value = _as_value(self._value.astype(dtype, copy=False))
        self._node = self._leaf = None
        self.requires_grad = requires_grad

    @property
    def data(self) -> Any:
        """The array, for a number a 0-d array. May be replaced by one of the same shape, and is then cast to ``dtype``.

        Writing into it, or into any array that an operation read, before ``backward`` spoils the gradients, and nothing
        notices.
        """
        if isinstance(self._value, np.generic):
            self._value = np.asarray(self._value)
        return self._value

    @data.setter
    def data(self, data: Any) -> None:
        value = _as_value(data)
        if value.shape != self.shape:
            raise ValueError(f".data of shape {self.shape} cannot become shape {value.shape}: make a new Tensor for it")
        if not np.can_cast(value.dtype, self.dtype, "same_kind"):
            raise TypeError(f".data of dtype {self.dtype} cannot become {value.dtype}: convert it with .astype first")
        self._value = value.astype(self.dtype, copy=False)

    @property
    def requires_grad(self) -> bool:
        """Whether ``backward`` from here reaches a leaf. May be switched on leaves; while off, ``.grad`` is None."""
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, required: bool) -> None:
        if self._node is not None and self._node.row is not None:
            raise ValueError("requires_grad of a result follows from its operands: cut it off with .detach()")
        if not required:
            self._node = None
        elif self.dtype.kind != "f":
            raise TypeError(f"{self.dtype} data cannot require gradients, only floats can: convert it with dtype=float")
        else:
            self._leaf = self._node = getattr(self, "_leaf", None) or _Node(None, (), (), None)

    @property
    def grad(self) -> Any:
        """The sum of the gradients that ``backward`` brought here: an array like ``.data``, or None. Leaves only.

        The array is the Tensor's own. After ``backward(create_graph=True)`` it is a Tensor. May be set, to None say.
        """
        node = self._node
        if node is None or node.row is not None:
            return None
        if isinstance(node.grad, np.generic):
            node.grad = np.asarray(node.grad)
        return node.grad

    @grad.setter
    def grad(self, gradient: Any) -> None:
        if gradient is not None:
            if self._node is None or self._node.row is not None:
                raise ValueError(".grad can be set on leaves that require gradients only")
            keep = isinstance(gradient, Tensor) and gradient.requires_grad
            gradient = (gradient if keep else _as_value(gradient)).astype(self.dtype)
            if gradient.shape != self.shape:
                raise ValueError(f".grad of a Tensor of shape {self.shape} cannot have shape {gradient.shape}")
        if self._node is not None:
            self._node.grad = gradient

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes, () for a number."""
        return self._value.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self._value.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._value.size

    @property
    def dtype(self) -> np.dtype:
        """The NumPy dtype of the elements."""
        return self._value.dtype

    @property
    def T(self) -> Tensor:
        """The Tensor with its axes in reversed order."""
        return self.transpose()

    def backward(self, gradient: ArrayLike | Tensor | None = None, create_graph: bool = False) -> None:
        """Add d(self)/d(leaf) to the ``.grad`` of every leaf that this Tensor was computed from.

        Parameters
        ----------
        gradient : an array of this Tensor's shape, the gradient of some number with respect to this Tensor; by
            default 1, for a Tensor of one element.
        create_graph : record the computation of the gradients too; ``.grad`` becomes a Tensor to differentiate again.

        Raises
        ------
        ValueError : if the Tensor requires no gradient, or has several elements and no ``gradient`` of its shape.

        >>> x = Tensor([1.0, 2.0], requires_grad=True)
        >>> (x**3).backward([1.0, 10.0])
        >>> x.grad
        array([  3., 120.])
        """
        value = self._value
        if self._node is None:
            raise ValueError("backward() on a Tensor that requires no gradient: make a leaf with requires_grad=True")
        if gradient is None:
            if value.size != 1:
                raise ValueError(
                    f"backward() of shape {value.shape} needs a gradient: reduce it with .sum() or give one"
                )
            gradient = np.ones_like(value) if value.ndim else value.dtype.type(1)
        else:
            gradient = gradient if isinstance(gradient, Tensor) and create_graph else _as_value(gradient)
            if gradient.shape != value.shape:
                raise ValueError(f"backward() of shape {value.shape} got a gradient of shape {gradient.shape}")
            gradient = gradient.astype(value.dtype)
        if create_graph:
            with _recording(True):
                _backward(self._node, gradient if isinstance(gradient, Tensor) else _wrap(gradient, None), True)
        else:
            _backward(self._node, gradient, False)

    def detach(self) -> Tensor:
        """A Tensor of the same data, without copying, that requires no gradient."""
        return _wrap(self.data, None)

    def item(self) -> Any:
        """The one element, as a Python number; ValueError if there are more."""
        return np.asarray(self._value).item()

    def astype(self, dtype: DTypeLike) -> Tensor:
        """The values converted to ``dtype``; gradients are converted back."""
        return _astype(self, dtype)

    # Python's and NumPy's protocols. What would lose a gradient without a word is an error that says what to do.

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("a 0-d Tensor has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> Tensor:
        return _apply(operator.getitem, self, _index_values(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError("a Tensor cannot be written to: compute a new one with np.where, or write to its .data")

    def __bool__(self) -> bool:
        return bool(self._value)

    def __float__(self) -> float:
        return float(self._constant("a Python number", "np. functions, not math's, or .item()"))

    def __int__(self) -> int:
        return int(self._constant("a Python number", "np. functions, not math's, or .item()"))

    def __index__(self) -> int:
        if self.ndim or self.dtype.kind not in "iu":
            raise TypeError(f"an index must be an integer, not a Tensor of shape {self.shape} and dtype {self.dtype}")
        return int(self._value)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray:
        value = self._constant("a NumPy array", "np. functions (with pandas, Tensor(df) @ t), .item() or .detach()")
        return np.array(value, dtype) if copy else np.asarray(value, dtype)

    def _constant(self, what, advice):
        if self._node is not None:
            raise TypeError(f"a Tensor that requires gradients would lose them as {what}: use {advice}")
        return self._value

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if method != "__call__":
            raise TypeError(f"{_name(ufunc)}.{method} does not take Tensors: write it with np. functions, np.sum say")
        if options:
            name, option = _name(ufunc), ", ".join(options)
            raise TypeError(
                f"{name} with {option}= does not take Tensors: write y = {name}(...), a new Tensor, without"
            )
        return _apply(ufunc, *[x if isinstance(x, Tensor) or x.__class__ in _numbers else _as_value(x) for x in inputs])

    def __array_function__(self, function, types, args, options):
        return _apply(function, *args, **options)

    def __repr__(self) -> str:
        value = np.asarray(self._value) if isinstance(self._value, np.generic) else self._value
        show = functools.partial(np.array2string, separator=", ", prefix="Tensor(")
        text = show(value) if isinstance(value, np.ndarray) else repr(value)
        dtype = "" if self.dtype in (float, int, bool) else f", dtype={self.dtype}"
        return f"Tensor({text}{dtype}{', requires_grad=True' if self.requires_grad else ''})"

    def __format__(self, spec: str) -> str:
        return super().__format__(spec) if self.ndim else format(self.item(), spec)

    def __reduce__(self):
        if self._node is not None and self._node.row is not None:
            raise TypeError("a computed Tensor cannot be copied or pickled with its graph: use .detach()")
        grad = self.grad.detach() if isinstance(self.grad, Tensor) else self.grad
        return type(self), (self.data, self.requires_grad), (None, {"grad": grad})

    # Operators and methods, each a function of the table.

    __add__, __radd__ = _operator(np.add, operator.add)
    __sub__, __rsub__ = _operator(np.subtract, operator.sub)
    __mul__, __rmul__ = _operator(np.multiply, operator.mul)
    __truediv__, __rtruediv__ = _operator(np.divide, operator.truediv)
    __pow__, __rpow__ = _operator(np.power, operator.pow)
    __matmul__, __rmatmul__ = _operator(np.matmul, np.matmul)
    __eq__ = _operator(np.equal, operator.eq)[0]  # type: ignore[assignment]
    __ne__ = _operator(np.not_equal, operator.ne)[0]  # type: ignore[assignment]
    __lt__ = _operator(np.less, operator.lt)[0]
    __le__ = _operator(np.less_equal, operator.le)[0]
    __gt__ = _operator(np.greater, operator.gt)[0]
    __ge__ = _operator(np.greater_equal, operator.ge)[0]
    __and__, __rand__ = _operator(np.bitwise_and, operator.and_)
    __or__, __ror__ = _operator(np.bitwise_or, operator.or_)
    __xor__, __rxor__ = _operator(np.bitwise_xor, operator.xor)

    __neg__, __pos__, __abs__, __invert__ = map(_method, (np.negative, np.positive, np.absolute, np.invert))

    sum, mean, max, min, prod = map(_method, (np.sum, np.mean, np.max, np.min, np.prod))
    var, std, squeeze, swapaxes, ravel = map(_method, (np.var, np.std, np.squeeze, np.swapaxes, np.ravel))
    any, all, argmax, argmin = map(_method, (np.any, np.all, np.argmax, np.argmin))
    exp, log, sqrt, sin, cos, tanh = map(_method, (np.exp, np.log, np.sqrt, np.sin, np.cos, np.tanh))
    abs = __abs__

    def relu(self) -> Tensor:
        """max(t, 0), with a gradient of 0 at 0."""
        return relu(self)

    def sigmoid(self) -> Tensor:
        """1 / (1 + exp(-t)), without overflow."""
        return sigmoid(self)

    def clip(self, min: Any = None, max: Any = None) -> Tensor:
        """The values limited to [min, max]; None is no limit."""
        return _apply(np.clip, self, min, max)

    def reshape(self, *shape: Any) -> Tensor:
        """``t.reshape(2, -1)`` or ``t.reshape((2, -1))``."""
        return _apply(np.reshape, self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes: Any) -> Tensor:
        """``t.transpose()`` reverses the axes, ``t.transpose(1, 0)`` or ``t.transpose((1, 0))`` orders them."""
        return _apply(np.transpose, self, axes[0] if len(axes) == 1 else axes or None)


def _index_values(index):
    """An index in which arrays stand for Tensors."""
    if isinstance(index, (tuple, list)):
        return (tuple if isinstance(index, tuple) else list)(map(_index_values, index))
    return np.asarray(index._value) if isinstance(index, Tensor) else index


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
        argument. Where the name of a parameter begins with an underscore, the VJP reads no more of it than shape, ndim
        and dtype, which saves memory. None alone says that the result is a constant.

    Returns
    -------
    The function to call: ``function`` itself where NumPy lets Tensors override it, else one that records.

    >>> cube = defvjp(lambda x: x * x * x, lambda g, out, x: g * 3 * x**2)
    >>> x = Tensor(2.0, requires_grad=True)
    >>> cube(x).backward()
    >>> x.grad
    array(12.)
    """
    if not callable(function) or not vjps:
        raise TypeError(
            f"defvjp takes a function and a rule for each of its arguments, not {function!r} and {len(vjps)}"
        )
    row = _table.setdefault(function, _Row(function))
    row.define(vjps)
    if isinstance(function, np.ufunc) or hasattr(function, "_implementation"):
        return function

    @functools.wraps(function)
    def recording(*args: Any, **options: Any) -> Any:
        if any(isinstance(arg, Tensor) for arg in (*args, *options.values())):
            return _apply(function, *args, **options)
        return function(*args, **options)

    _table[recording] = row
    return recording


def _express(function, expression):
    """Say a function in other functions of the table, for Tensors that require gradients."""
    _table.setdefault(function, _Row(function)).define(expression=expression)


def _axes(x, axis):
    """``axis`` as a tuple of the axes that it stands for, none negative. (NumPy lets numbers have an axis 0.)"""
    axes = range(x.ndim) if axis is None else normalize_axis_tuple(axis, x.ndim or 1)
    return tuple(axes)[: x.ndim]


def _kept(x, axis):
    """The shape of a reduction of x over ``axis`` with keepdims=True."""
    axes = _axes(x, axis)
    return tuple([1 if a in axes else n for a, n in enumerate(x.shape)])


def _count(x, axis):
    """How many elements of x a reduction over ``axis`` makes one of; 1, to divide by, if there are none."""
    return math.prod([x.shape[a] for a in _axes(x, axis)]) or 1


def _spread(g, x, axis):
    """The gradient of a sum over ``axis`` goes to every element of x alike."""
    return g if g.shape == x.shape else np.broadcast_to(g.reshape(_kept(x, axis)), x.shape)


def _share(g, out, x, axis=None, *, keepdims=False):
    """The gradient of max and min: to the elements that are it, in equal shares where there are ties."""
    hit = ((x == out.reshape(_kept(x, axis))) | (x != x)).astype(g.dtype)  # nan is its own maximum
    return g.reshape(_kept(x, axis)) * (hit / hit.sum(axis=axis, keepdims=True))


def _less_one(y):
    """y - 1, but 0 where y is 0: so that y * x**(y - 1), the derivative of x**y, is 0 for y = 0 at x = 0 too."""
    return y - (y != 0) if isinstance(y, (int, float)) else np.where(y == 0, 0, y - 1)


def _log_of_base(out, x, y):
    """log(x) in the dtype of out = x**y, for d(out)/dy = out * log(x); 0 where x is 0 and out stays 0 or 1 beside y."""
    x = x.astype(out.dtype) if hasattr(x, "astype") else out.dtype.type(x)
    return np.log(np.where((x == 0) & (y >= 0), 1, x))


def _matmul_vjp_x(g, _out, _x, y):
    if y.ndim == 1:
        return g[..., None] * y
    if _x.ndim == 1:
        return (y @ g[..., None])[..., 0]
    return g @ y.swapaxes(-1, -2)


def _matmul_vjp_y(g, _out, x, _y):
    if x.ndim == 1:
        return x[:, None] * g[..., None, :] if _y.ndim > 1 else g * x
    if _y.ndim == 1:
        return (x.swapaxes(-1, -2) @ g[..., None])[..., 0]
    return x.swapaxes(-1, -2) @ g


def _prod(x, axis=None, *, keepdims=False):
    """A product as a tree of multiplications: no division, so that zeros among the factors do no harm at any order."""
    axes, odd = _axes(x, axis), []
    n = math.prod([x.shape[a] for a in axes])
    if n == 0:
        return x.sum(axis=axis, keepdims=keepdims) + 1
    rest = [a for a in range(x.ndim) if a not in axes]
    shape = _kept(x, axis) if keepdims else tuple(x.shape[a] for a in rest)
    x = x.transpose([*axes, *rest]).reshape((n, *[x.shape[a] for a in rest]))
    while n > 1:
        if n % 2:
            odd.append(x[n - 1])
        n //= 2
        x = x[0 : 2 * n : 2] * x[1 : 2 * n : 2]
    return functools.reduce(operator.mul, odd, x[0]).reshape(shape)


def _deviations(x, axis):
    return x - x.mean(axis=axis, keepdims=True)


def _freedom(x, axis, ddof):
    """What a variance is divided by, as a plain float; 0, by which NumPy divides with a warning, where none is left."""
    return max(_count(x, axis) - float(ddof), 0.0)


def _var(x, axis=None, *, ddof=0, keepdims=False):
    d = _deviations(x, axis)
    var = (d * d).mean(axis=axis, keepdims=keepdims)
    return var / (_freedom(x, axis, ddof) / _count(x, axis)) if ddof else var


def _std_vjp(g, out, x, axis=None, *, ddof=0, keepdims=False):
    g = _spread(g / np.where(out == 0, 1, out), x, axis)  # where nothing varies, the deviations make it 0
    return g * _deviations(x, axis) / _freedom(x, axis, ddof)


def _inverse(axes):
    """The order of axes that undoes a transposition."""
    return None if axes is None else tuple(np.argsort([axis % len(axes) for axis in axes]).tolist())


def _relu(x):
    """max(x, 0), with a gradient of 0 at 0."""
    return np.maximum(x, 0)


def _sigmoid(x):
    """1 / (1 + exp(-x)), without overflow."""
    small = np.exp(np.abs(x) * -1.0)
    return np.where(np.less(x, 0), small, 1) / (1 + small)


def _convert(x, dtype):
    return x.astype(dtype)


_basic = (int, np.integer, slice, type(None), type(...))  # an index of these alone names no element twice


def _add_at(values, index, shape):
    """Zeros of ``shape``, with the values added at an index: what repeats in the index adds up."""
    out = np.zeros(shape, values.dtype)
    if all(isinstance(i, _basic) for i in (index if isinstance(index, tuple) else (index,))):
        out[index] = values
    else:
        np.add.at(out, index, values)
    return out


def _low(a_min):
    return -math.inf if a_min is None else a_min


def _high(a_max):
    return math.inf if a_max is None else a_max


# fmt: off
defvjp(np.add,       lambda g, _out, _x, _y: g,                       lambda g, _out, _x, _y: g)
defvjp(np.subtract,  lambda g, _out, _x, _y: g,                       lambda g, _out, _x, _y: -g)
defvjp(np.multiply,  lambda g, _out, _x, y: g * y,                    lambda g, _out, x, _y: g * x)
defvjp(np.divide,    lambda g, _out, _x, y: g / y,                    lambda g, out, _x, y: -g * out / y)
defvjp(np.power,     lambda g, _out, x, y: g * (y * x ** _less_one(y)),
                     lambda g, out, x, y: g * (out * _log_of_base(out, x, y)))
defvjp(np.matmul,    _matmul_vjp_x,                                   _matmul_vjp_y)

defvjp(np.positive,  lambda g, _out, _x: g)
defvjp(np.negative,  lambda g, _out, _x: -g)
defvjp(np.absolute,  lambda g, _out, x: g * np.sign(x))
defvjp(np.exp,       lambda g, out, _x: g * out)
defvjp(np.log,       lambda g, _out, x: g / x)
defvjp(np.sqrt,      lambda g, out, _x: g / (2 * out))
defvjp(np.sin,       lambda g, _out, x: g * np.cos(x))
defvjp(np.cos,       lambda g, _out, x: -g * np.sin(x))
defvjp(np.tanh,      lambda g, out, _x: g * (1 - out * out))
relu = defvjp(_relu, lambda g, out, _x: np.where(out <= 0, 0, g))
sigmoid = defvjp(_sigmoid, lambda g, out, _x: g * (out * (1 - out)))
_astype = defvjp(_convert, lambda g, _out, _x, _dtype: g)

defvjp(np.where,     None,
                     lambda g, _out, condition, _x, _y: np.where(condition, g, 0),
                     lambda g, _out, condition, _x, _y: np.where(condition, 0, g))
defvjp(np.clip,      lambda g, _out, x, a_min, a_max: np.where((x >= _low(a_min)) & (x <= _high(a_max)), g, 0),
                     lambda g, _out, x, a_min, a_max: np.where((x < a_min) & (a_min < _high(a_max)), g, 0),
                     lambda g, _out, x, a_min, a_max: np.where((x > a_max) | (a_max < _low(a_min)), g, 0))

defvjp(np.sum,       lambda g, _out, _x, axis=None, *, keepdims=False: _spread(g, _x, axis))
defvjp(np.mean,      lambda g, _out, _x, axis=None, *, keepdims=False: _spread(g * (1 / _count(_x, axis)), _x, axis))
defvjp(np.max,       _share)
defvjp(np.min,       _share)
defvjp(np.amax,      _share)  # another function object than np.max, and kept for older code
defvjp(np.amin,      _share)
defvjp(np.std,       _std_vjp)
_express(np.var,     _var)
_express(np.prod,    _prod)

defvjp(np.reshape,      lambda g, _out, _x, shape: g.reshape(_x.shape))
defvjp(np.ravel,        lambda g, _out, _x: g.reshape(_x.shape))
defvjp(np.squeeze,      lambda g, _out, _x, axis=None: g.reshape(_x.shape))
defvjp(np.transpose,    lambda g, _out, _x, axes=None: g.transpose(_inverse(axes)))
defvjp(np.swapaxes,     lambda g, _out, _x, axis1, axis2: g.swapaxes(axis1, axis2))
defvjp(np.broadcast_to, lambda g, _out, _x, shape: g)
_scatter = defvjp(_add_at, lambda g, _out, _values, index, shape: g[index])
defvjp(operator.getitem, lambda g, _out, _x, index: _scatter(g, index, _x.shape))

# The methods begin in half the time of the functions, and a number is its own sum and mean.
_table[np.sum].compute = lambda x, axis=None, **keep: x.sum(axis, **keep) if x.ndim or axis is not None else +x
_table[np.mean].compute = lambda x, axis=None, **keep: x.mean(axis, **keep) if x.ndim or axis is not None else +x

for constant in (np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal, np.sign,
                 np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.invert, np.isfinite, np.isnan, np.isinf,
                 np.zeros_like, np.ones_like, np.shape, np.ndim, np.size, np.argmax, np.argmin, np.any, np.all):
    defvjp(constant, None)
# fmt: on


# --- Backward ---------------------------------------------------------------------------------------------------------
# Nodes are taken newest first: parents are older than their children, so that all of a node's gradient has arrived when
# its turn comes. The running gradients live in a dict of this one call and leave it as soon as they have been used.


_leaves_lock = threading.Lock()  # two threads may come to the same leaf


def _backward(node, gradient, create_graph):
    """Add to each leaf's gradient what comes down to it when the gradient of ``node`` is ``gradient``."""
    gradients, leaves = {node: gradient}, []
    heap = [(node.order, node)]
    while heap:
        _, node = heappop(heap)
        g = gradients.pop(node)
        row, out, values, options = node.row, node.out, node.values, node.options
        if row is None:
            leaves.append((node, g))
            continue
        if create_graph:  # the saved values, linked to their places in the graph
            out = _wrap(out, node)
            values = [v if p is None else _wrap(v, p) for v, p in zip(values, node.parents, strict=True)]
        for parent, vjp, x in zip(node.parents, row.vjps, values, strict=False):  # options by position have no VJP
            if parent is None:
                continue
            part = vjp(g, out, *values, **options) if options else vjp(g, out, *values)
            if part.__class__ is not _float64 or x.__class__ is not _float64:
                part = _fit(part, x, row)
            before = gradients.get(parent)
            if before is None:
                gradients[parent] = part
                heappush(heap, (parent.order, parent))
            else:
                gradients[parent] = before + part
    with _leaves_lock:  # only now, so that an error on the way leaves every gradient as it was
        for leaf, g in leaves:
            leaf.grad = +g if leaf.grad is None else leaf.grad + g  # + makes a copy of its own


def _fit(g, x, row):
    """A gradient in the shape and dtype of the x that it belongs to: summed over the axes that broadcasting made."""
    if not hasattr(g, "dtype"):
        raise TypeError(f"a rule of {_name(row.function)} returned a {type(g).__name__}: it must return an array")
    if g.shape != x.shape:
        new = g.ndim - x.ndim
        summed = g.sum(axis=tuple([a for a in range(g.ndim) if a < new or x.shape[a - new] == 1]), keepdims=True)
        if summed.shape[max(new, 0) :] != x.shape:
            raise ValueError(f"a rule of {_name(row.function)} returned shape {g.shape} for an argument of {x.shape}")
        g = summed.reshape(x.shape)
    return g if g.dtype == x.dtype else g.astype(x.dtype)


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
    lr : the learning rate; may be changed between steps.

    Raises
    ------
    TypeError, ValueError : for no parameters, for what is no such Tensor, for rates that are negative or not finite.

    >>> p = Tensor([1.0, 2.0], requires_grad=True)
    >>> optimizer = SGD([p], lr=0.1)
    >>> (p * p).sum().backward()
    >>> optimizer.step()
    >>> p.data
    array([0.8, 1.6])
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        if isinstance(params, Tensor):
            raise TypeError("SGD takes a list of Tensors, not one Tensor: write SGD([t], ...)")
        self.params = list(params)
        if not self.params:
            raise ValueError("SGD got no parameters: give it the Tensors to train")
        for i, p in enumerate(self.params):
            if not isinstance(p, Tensor):
                raise TypeError(f"SGD trains Tensors, but parameter {i} is of type {type(p).__name__}")
            if p._node is None or p._node.row is not None:
                raise ValueError(f"SGD trains leaves, but parameter {i} is not one: make it with requires_grad=True")
        if len(set(self.params)) < len(self.params):
            raise ValueError("SGD got the same parameter twice: give it each one once")
        for name, rate in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not (isinstance(rate, numbers.Real) and 0 <= rate < math.inf):
                raise ValueError(f"SGD got {name}={rate!r}: it must be a finite number, 0 or more")
        if nesterov and not momentum:
            raise ValueError("SGD got nesterov=True without momentum: give it a momentum above 0")
        self.lr, self.momentum, self.weight_decay, self.nesterov = lr, momentum, weight_decay, nesterov
        self._velocities: list[Any] = [None] * len(self.params)

    def step(self) -> None:
        """Update every parameter from its ``.grad``."""
        # Python floats, which leave the dtype of the parameters alone.
        lr, momentum, weight_decay = float(self.lr), float(self.momentum), float(self.weight_decay)
        for i, p in enumerate(self.params):
            g = None if p._node is None else p._node.grad
            if g is None:
                continue
            if isinstance(g, Tensor):
                g = g._value
            if weight_decay:
                g = g + weight_decay * p._value
            if momentum:
                velocity = self._velocities[i]
                velocity = self._velocities[i] = +g if velocity is None else momentum * velocity + g
                g = g + momentum * velocity if self.nesterov else velocity
            p._value = p._value - lr * g

    def zero_grad(self) -> None:
        """Set every parameter's ``.grad`` to None, so that the next ``backward`` starts anew."""
        for p in self.params:
            if p._node is not None:
                p._node.grad = None


# --- Tools ------------------------------------------------------------------------------------------------------------
# What checks a derivative against something that knows nothing of this file.


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

    >>> gradcheck(lambda x, y: (x * y).tanh(), 0.5, [1.0, -2.0])
    True
    """
    arrays = [np.asarray(arg.detach() if isinstance(arg, Tensor) else arg) for arg in args]
    floating = [i for i, array in enumerate(arrays) if array.dtype.kind == "f"]
    leaves = list(args)
    if not floating:
        raise TypeError("gradcheck got no float argument to check: integers and booleans have no gradient")
    for i in floating:
        leaves[i] = Tensor(arrays[i].astype(float), requires_grad=True)
    with _recording(True):
        out = f(*leaves)
    weights = np.random.default_rng(0).uniform(0.5, 1.5, np.shape(out))
    if isinstance(out, Tensor) and out.requires_grad:
        out.backward(weights)

    def weighted_sum():
        with no_grad():
            out = f(*leaves)
        return (weights * np.asarray(out.detach() if isinstance(out, Tensor) else out)).sum()

    for i in floating:
        data, gradient = leaves[i].data, leaves[i].grad
        for entry in np.ndindex(data.shape):
            x, found = data[entry], 0.0 if gradient is None else gradient[entry]
            data[entry] = x + eps
            above = weighted_sum()
            data[entry] = x - eps
            difference = (above - weighted_sum()) / (2 * eps)
            data[entry] = x
            if not math.isclose(found, difference, rel_tol=rtol, abs_tol=atol):
                raise AssertionError(f"argument {i}, entry {entry}: backward {found}, central differences {difference}")
    return True
