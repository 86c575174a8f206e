"""What peers.py compares and measures: the same work by hand and with libraries."""
# ruff: noqa: E731, N803  (functions of one expression, and matrices, which are capital letters)

import contextlib
import gc
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tinygrad_lite  # noqa: E402

# What a program imports, and how the picture shows it: in colours that the colour-blind tell apart (Okabe and Ito).
PROGRAMS = {
    "by hand": ("numpy", "#000000", "|"),
    "tinygrad_lite": ("tinygrad_lite", "#0072B2", "o"),
    "tinygrad_lite jit": ("tinygrad_lite", "#0072B2", "D"),
    "tinygrad_lite jit, lower": ("tinygrad_lite", "#0072B2", "<"),
    "source + numba": ("numba", "#0072B2", "p"),
    "source + JAX": ("jax", "#0072B2", "h"),
    "micrograd": ("micrograd.engine", "#E69F00", "X"),
    "autograd": ("autograd", "#009E73", "s"),
    "mygrad": ("mygrad", "#CC79A7", "P"),
    "jax": ("jax", "#D55E00", "v"),
    "torch, 1 thread": ("torch", "#56B4E9", "*"),
    "torch, 2 threads": ("torch", "#56B4E9", "^"),
}
ON_ARRAYS = [program for program in PROGRAMS if program != "micrograd"]
PLAIN = [program for program in PROGRAMS if not re.search("jit|source|2 threads", program)]
WITH_PARAMETERS = {"tinygrad_lite", "micrograd", "mygrad", "torch, 1 thread", "torch, 2 threads"}


def by_steps(step: Callable) -> Callable:
    def train(xs: Any, ys: Any) -> Any:
        w = b = np.float64(0)
        for x, y in zip(xs, ys):  # noqa: B905  (numba knows no strict=)
            w, b = step(w, b, x, y, 0.01)
        return w, b

    return train


def step_by_hand(w: Any, b: Any, x: Any, y: Any, lr: float) -> Any:
    error = w * x + b - y
    slope = 2 * error
    return w - lr * (slope * x), b - lr * slope


def linear_by_hand(W: Any, b: Any, X: Any, y: Any) -> Any:
    error = X @ W + b - y
    d_error = 2 / error.size * error
    return (error * error).sum() / error.size, X.T @ d_error, d_error.sum(axis=0)


def network_by_hand(W: Any, b: Any, V: Any, c: Any, X: Any, y: Any) -> Any:
    h = np.tanh(X @ W + b)
    error = h @ V + c - y
    d_error = 2 / error.size * error
    d_z = (d_error @ V.T) * (1 - h * h)
    return (error * error).sum() / error.size, X.T @ d_z, d_z.sum(axis=0), h.T @ d_error, d_error.sum(axis=0)


def product_by_hand(W: Any, b: Any, V: Any, c: Any, X: Any, y: Any, tW: Any, tb: Any, tV: Any, tc: Any) -> Any:
    """The backward pass of the network, and how each of its lines changes along tW, tb, tV, tc."""
    h = np.tanh(X @ W + b)
    slope, error = 1 - h * h, h @ V + c - y
    th = slope * (X @ tW + tb)
    d_error, td_error = 2 / error.size * error, 2 / error.size * (th @ V + h @ tV + tc)
    d_h, td_h = d_error @ V.T, td_error @ V.T + d_error @ tV.T
    td_z = td_h * slope - 2 * d_h * h * th
    return X.T @ td_z, td_z.sum(axis=0), th.T @ d_error + h.T @ td_error, td_error.sum(axis=0)


def curve_by_hand(w: Any, b: Any, x: Any) -> Any:
    t = np.tanh(w * x + b)
    d_z = 2 / x.size * t * (1 - t * t)
    return (t * t).sum() / x.size, (d_z * x).sum(), d_z.sum(), d_z * w


def chain_by_hand(length: int, x: float) -> Any:
    x, slopes, g = float(x), [], 1.0  # Python's numbers are faster than NumPy's
    for _ in range(length):
        x = x * 1.0000001
        slopes.append(1.0000001)
    for slope in reversed(slopes):
        g = g * slope
    return x, g


# --- Programs: some libraries leave gradients in parameters, others make a function of gradients ----------------------

same = lambda x: x
leaves = lambda tree: [x for item in tree for x in leaves(item)] if isinstance(tree, (list, tuple)) else [tree]
network = lambda xp, W, b, V, c, X, y: xp.mean((xp.tanh(X @ W + b) @ V + c - y) ** 2)


def chain(length: int, _xp: Any, x: Any) -> Any:
    for _ in range(length):
        x = x * 1.0000001
    return x


def with_parameters(program: str) -> tuple:
    """The namespace, what makes a parameter and a constant, what resets a gradient, and the optimizer."""
    library, reset = import_module(PROGRAMS[program][0]), lambda x: setattr(x, "grad", None)
    if program == "tinygrad_lite":
        return np, partial(library.Tensor, requires_grad=True), same, reset, library.SGD
    if program == "micrograd":
        reset = lambda x: setattr(x, "grad", 0)
        return None, lambda x: library.Value(float(x)), float, reset, partial(descent, reset)
    if program == "mygrad":
        return library, library.tensor, same, library.Tensor.null_grad, partial(descent, library.Tensor.null_grad)
    library.set_num_threads(int(program.split()[1]))
    return library, partial(library.tensor, requires_grad=True), library.tensor, reset, library.optim.SGD


def descent(reset: Callable, parameters: list, lr: float) -> Any:
    """An optimizer where the library has none."""

    def step() -> None:
        for x in parameters:
            x.data -= lr * x.grad

    return SimpleNamespace(zero_grad=lambda: [*map(reset, parameters)], step=step)


def sgd(program: str, xs: list, ys: list) -> Callable:
    loss, zero = lambda w, b, x, y: (w * x + b - y) ** 2, np.float64(0)
    if program not in WITH_PARAMETERS:
        make = lambda library, _: partial(sgd_step, library.grad(loss, (0, 1)))
        step, _, wait = with_functions(program, make, [zero, zero, xs[0], ys[0], 0.01])
        if program == "source + numba":  # which compiles the loop as well
            return partial(import_module("numba").njit(by_steps(step)), np.array(xs), np.array(ys))
        return lambda: wait(by_steps(step)(xs, ys))
    _, parameter, _, _, optimizer_of = with_parameters(program)
    floats = [*zip(map(float, xs), map(float, ys), strict=True)]  # a bit faster, for those with own numbers

    def train() -> Any:
        w, b = parameters = [parameter(zero), parameter(zero)]
        optimizer = optimizer_of(parameters, lr=0.01)
        for x, y in floats:
            optimizer.zero_grad()
            loss(w, b, x, y).backward()
            optimizer.step()
        return parameters

    return train


def sgd_step(gradient: Callable, w: Any, b: Any, x: Any, y: Any, lr: Any) -> Any:
    slope_w, slope_b = gradient(w, b, x, y)
    return w - lr * slope_w, b - lr * slope_b


def losses(model: Callable, count: int, program: str, *arguments: Any, eager: bool = False) -> Callable:
    """A loss and its gradients by the first so many arguments."""
    if program not in WITH_PARAMETERS:
        make = lambda library, xp: library.value_and_grad(partial(model, xp), tuple(range(count)))
        function, arrays, wait = with_functions(program, make, arguments, eager)
        return lambda: wait(function(*arrays))
    xp, parameter, constant, reset, _ = with_parameters(program)
    parameters, constants = [*map(parameter, arguments[:count])], [*map(constant, arguments[count:])]

    def run() -> Any:
        for x in parameters:
            reset(x)
        loss = model(xp, *parameters, *constants)
        loss.backward()
        return loss, [x.grad for x in parameters]

    return run


def product(program: str, *arguments: Any) -> Callable:
    """The gradient of the inner product of the gradient and a vector; in JAX forward over reverse, its advice."""
    inner = lambda xp, slopes, vectors: sum(xp.sum(g * v) for g, v in zip(slopes, vectors, strict=True))
    if program.startswith("torch"):
        torch, parameter, constant, *_ = with_parameters(program)
        x, rest, grad = [*map(parameter, arguments[:4])], [*map(constant, arguments[4:])], torch.autograd.grad
        slopes = lambda: grad(network(torch, *x, *rest[:2]), x, create_graph=True)
        return lambda: grad(inner(torch, slopes(), rest[2:]), x)

    def make(library: Any, xp: Any) -> Callable:
        slopes = library.grad(partial(network, xp), (0, 1, 2, 3))
        if program == "jax":
            return lambda *x: library.jvp(lambda *point: slopes(*point, *x[4:6]), x[:4], x[6:])[1]
        return library.grad(lambda *x: inner(xp, slopes(*x[:6]), x[6:]), (0, 1, 2, 3))

    function, arrays, wait = with_functions(program, make, arguments)
    return lambda: wait(function(*arrays))


def with_functions(program: str, make: Callable, arguments: Any, eager: bool = False) -> tuple:
    """What a library and its namespace make, compiled for arguments; these as its arrays; what waits for results."""
    library, array, wait = import_module(PROGRAMS[program][0]), same, same
    if library.__name__ == "jax":
        library.config.update("jax_platforms", "cpu")
        library.config.update("jax_enable_x64", True)  # else float64 becomes float32
        array, wait = library.numpy.asarray, library.block_until_ready
    f = make(library, library.numpy) if program in ("autograd", "jax") else make(tinygrad_lite, np)
    if program.startswith("source"):
        f = printed(f, arguments, "jax.numpy" if program == "source + JAX" else "numpy")
    if program not in ("tinygrad_lite", "autograd") and not eager:
        f = (library.njit if program == "source + numba" else library.jit)(f)
    return f.lower(*arguments) if "lower" in program else f, [*map(array, arguments)], wait


def printed(f: Callable, arguments: Any, namespace: str) -> Callable:
    """The function that jit prints, with the functions of this namespace for NumPy's."""
    text = tinygrad_lite.jit(f).source(*arguments)
    exec(text.replace("import numpy as np", f"import {namespace} as np"), module := {})
    return module[re.search(r"^def (\w+)", text, re.MULTILINE)[1]]


def imports(program: str) -> Callable:
    """A process that imports what a program needs; that of no program is what the others' times have too much."""
    call = [sys.executable, "-c", f"import {PROGRAMS[program][0]}" if program else ""]
    return lambda: 1 + subprocess.run(call, cwd=ROOT, check=True).returncode


# --- Workloads --------------------------------------------------------------------------------------------------------


class Workload(NamedTuple):
    number: int
    programs: list[str]
    arguments: Callable[[], list]
    by_hand: Callable  # of the arguments
    prepare: Callable  # of a program and the arguments: what is timed
    tolerance: float = 1e-9  # of an array, relative to its largest entry
    memory: bool = False
    steps: int = 1  # in a run


def normal(dtype: Any, *shapes: Any) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def layers(n: int, inputs: int, hidden: int, outputs: int) -> list[Any]:
    return [(inputs, hidden), hidden, (hidden, outputs), outputs, (n, inputs), (n, outputs)]


def examples() -> list[list]:
    xs = np.random.default_rng(0).normal(size=200)
    return [[*xs], [*(xs - 1)]]  # lists, as they come one by one


def dense(number: int, dtype: Any, *sizes: int) -> Workload:
    work = partial(normal, dtype, *layers(*sizes)), network_by_hand, partial(losses, network, 4)
    return Workload(number, ON_ARRAYS, *work, 1e-9 if dtype is float else 1e-3)


def multiplications(n: int) -> Workload:
    work = lambda: [np.float64(1)], partial(chain_by_hand, n), partial(losses, partial(chain, n), 1, eager=True)
    return Workload(8, PLAIN, *work, memory=True)


line = partial(losses, lambda xp, W, b, X, y: xp.mean((X @ W + b - y) ** 2), 2)
curve = partial(losses, lambda xp, w, b, x: xp.mean(xp.tanh(w * x + b) ** 2), 3)
few, large = [(3, 1), 1, (105, 3), (105, 1)], lambda: [np.float64(0.5), np.float64(0.1), *normal(float, 4_000_000)]
ten = *layers(128, 64, 64, 10), *layers(128, 64, 64, 10)[:4]
WORKLOADS = {
    "one scalar SGD step": Workload(1, [*PROGRAMS], examples, by_steps(step_by_hand), sgd, steps=200),
    "linear 105x3 -> 1": Workload(2, ON_ARRAYS, partial(normal, float, *few), linear_by_hand, line),
    "network 105x3 -> 16 -> 1": dense(3, float, 105, 3, 16, 1),
    "network 128x64 -> 64 -> 10, float32": dense(4, np.float32, 128, 64, 64, 10),
    "network 128x784 -> 128 -> 10, float32": dense(5, np.float32, 128, 784, 128, 10),
    "network 512x784 -> 512 -> 10, float32": dense(6, np.float32, 512, 784, 512, 10),
    "mean(tanh(w*x + b)**2) of 4,000,000": Workload(7, ON_ARRAYS, large, curve_by_hand, curve, memory=True),
    **{f"chain of {n:,} multiplications": multiplications(n) for n in (1_000, 10_000, 100_000, 1_000_000)},
    "Hessian-vector product, 128x64 -> 64 -> 10": Workload(
        9, [p for p in ON_ARRAYS if p != "mygrad"], partial(normal, np.float32, *ten), product_by_hand, product, 1e-3
    ),
    "import in a fresh process": Workload(10, ["", *PLAIN], list, lambda: imports("by hand")(), imports),
}


def work(name: str, program: str) -> Callable:
    """What is timed; it returns what is compared, in the types of its library."""
    workload = WORKLOADS[name]
    arguments = workload.arguments()
    return partial(workload.by_hand, *arguments) if program == "by hand" else workload.prepare(program, *arguments)


@cache
def ready(name: str, program: str) -> tuple[Callable, int]:
    """What is timed, after a first run, and how far this raised the peak of memory; ends if its results are wrong."""
    run = work(name, program)
    gc.collect()
    with contextlib.suppress(OSError):  # where this works, peaks from before are forgotten
        Path("/proc/self/clear_refs").write_text("5")
    before, found, memory = peak_memory(), run(), peak_memory()
    if not (off := difference(found, work(name, "by hand")())) <= WORKLOADS[name].tolerance:
        sys.exit(f"{name}: {program} differs by {off:.2g} of the largest entry from the results by hand")
    return run, memory - before


def peak_memory() -> int:
    """In bytes; on Linux ru_maxrss has that of the process that started this one as well."""
    with contextlib.suppress(OSError, TypeError):
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def difference(found: Any, expected: Any) -> float:
    """The largest, relative to the largest entry of an array; infinite between arrays of other shapes."""
    # Tensors of most libraries have their array in .data; what is an array or a number is that by itself.
    arrays = [np.asarray(getattr(x, "data", x)) for x in leaves(found)]
    pairs = zip(arrays, map(np.asarray, leaves(expected)), strict=True)
    return max(float(abs(x - y).max() / abs(y).max()) if x.shape == y.shape else np.inf for x, y in pairs)
