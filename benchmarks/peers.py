"""How fast this project and its peers do the same work, and what they need for it.

    uv run --group bench benchmarks/peers.py
    uv run --group bench benchmarks/peers.py --workloads 1 3 --repeats 7
    uv run --group bench benchmarks/peers.py --functions

Each program has a process of its own, and these take turns, so that all meet the same machine. Their results are
compared before anything is timed. A table shows the median time of a run, also as a multiple of that of NumPy code
written by hand, and of ``tinygrad_lite`` without ``jit``. Memory, where shown, is how far the first run raised the peak
of the process's resident set (``ru_maxrss``: kilobytes on Linux, bytes on macOS), so what both ``jit`` need to make
their code is a part of it; outside Linux, which can forget earlier peaks, these may hide a part of it. JAX runs without
``jit`` in the chains of multiplications, which are Python loops everywhere.

A peer that is not installed is left out. PyTorch is not in the group, as its default wheel is gigabytes: install it
beside the group for its rows. NumPy takes as many threads as it does by default. A run of all workloads, with 7 repeats
or more, writes ``results.json`` and the picture ``results.svg`` beside this file.
"""

# ruff: noqa: N803  (matrices are capital letters)

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import timeit
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tinygrad_lite  # noqa: E402

TURN = 0.05  # seconds, for as many runs as fit
PAUSE = 0.15  # seconds before a turn, as idle threads of OpenBLAS keep a core busy for the next program for about 0.1
Run = Callable[[], Any]  # what is timed; it returns what is compared, in the types of its library

# What a program imports, and how the picture shows it: in colours that the colour-blind tell apart (Okabe and Ito), one
# for each library, and in markers.
PROGRAMS = {
    "by hand": ("numpy", "#000000", "|"),
    "tinygrad_lite": ("tinygrad_lite", "#0072B2", "o"),
    "tinygrad_lite jit": ("tinygrad_lite", "#0072B2", "D"),
    "tinygrad_lite jit, lower": ("tinygrad_lite", "#0072B2", "<"),
    "micrograd": ("micrograd.engine", "#E69F00", "X"),
    "autograd": ("autograd", "#009E73", "s"),
    "mygrad": ("mygrad", "#CC79A7", "P"),
    "jax": ("jax", "#D55E00", "v"),
    "torch, 1 thread": ("torch", "#56B4E9", "*"),
    "torch, 2 threads": ("torch", "#56B4E9", "^"),
}
MODULES = {program: module for program, (module, _, _) in PROGRAMS.items()}


# --- Models -----------------------------------------------------------------------------------------------------------
# Each is written once, as a function of the library's namespace.


def squared_error(_xp: Any, w: Any, b: Any, x: Any, y: Any) -> Any:
    return (w * x + b - y) ** 2


def linear(xp: Any, W: Any, b: Any, X: Any, y: Any) -> Any:
    return xp.mean((X @ W + b - y) ** 2)


def network(xp: Any, W: Any, b: Any, V: Any, c: Any, X: Any, y: Any) -> Any:
    h = xp.tanh(X @ W + b)
    return xp.mean((h @ V + c - y) ** 2)


def curve(xp: Any, w: Any, b: Any, x: Any) -> Any:
    return xp.mean(xp.tanh(w * x + b) ** 2)


def chain(length: int, _xp: Any, x: Any) -> Any:
    for _ in range(length):
        x = x * 1.0000001
    return x


# --- By hand ----------------------------------------------------------------------------------------------------------
# The same with its gradients, as one would write it without a library: the limit for code that NumPy runs line by line.


def step_by_hand(w: Any, b: Any, x: Any, y: Any, lr: float) -> Any:
    error = w * x + b - y
    slope = 2 * error
    return w - lr * (slope * x), b - lr * slope


def linear_by_hand(W: Any, b: Any, X: Any, y: Any) -> Any:
    error = X @ W + b - y
    d_error = 2 / error.size * error
    return (error * error).sum() / error.size, (X.T @ d_error, d_error.sum(axis=0))


def network_by_hand(W: Any, b: Any, V: Any, c: Any, X: Any, y: Any) -> Any:
    h = np.tanh(X @ W + b)
    error = h @ V + c - y
    loss = (error * error).sum() / error.size
    d_error = 2 / error.size * error
    d_h = d_error @ V.T
    d_z = d_h * (1 - h * h)
    return loss, (X.T @ d_z, d_z.sum(axis=0), h.T @ d_error, d_error.sum(axis=0))


def network_product_by_hand(W: Any, b: Any, V: Any, c: Any, X: Any, y: Any, tW: Any, tb: Any, tV: Any, tc: Any) -> Any:
    """The backward pass of the network, and how each of its lines changes along tW, tb, tV, tc."""
    h = np.tanh(X @ W + b)
    slope = 1 - h * h
    th = slope * (X @ tW + tb)
    error = h @ V + c - y
    d_error = 2 / error.size * error
    td_error = 2 / error.size * (th @ V + h @ tV + tc)
    d_h = d_error @ V.T
    td_h = td_error @ V.T + d_error @ tV.T
    td_z = td_h * slope - 2 * d_h * h * th
    return X.T @ td_z, td_z.sum(axis=0), th.T @ d_error + h.T @ td_error, td_error.sum(axis=0)


def curve_by_hand(w: Any, b: Any, x: Any) -> Any:
    t = np.tanh(w * x + b)
    d_z = 2 / x.size * t * (1 - t * t)
    return (t * t).sum() / x.size, ((d_z * x).sum(), d_z.sum(), d_z * w)


def chain_by_hand(length: int, x: float) -> Any:
    x, slopes = float(x), []  # Python's numbers are faster than NumPy's
    for _ in range(length):
        x = x * 1.0000001
        slopes.append(1.0000001)
    g = 1.0
    for slope in reversed(slopes):
        g = g * slope
    return x, g


# --- Libraries --------------------------------------------------------------------------------------------------------
# They come in two kinds: those that leave gradients in parameters, which stay the same from run to run and are reset in
# each, and those that make a function of gradients from a function.


class Parameters(NamedTuple):
    xp: Any
    parameter: Callable[[Any], Any]
    constant: Callable[[Any], Any]
    reset: Callable[[list], None]  # forgets the gradients of the parameters
    optimizer: Callable[[list], tuple[Callable, Callable]]  # of SGD what resets, and what takes a step


class Functions(NamedTuple):
    xp: Any
    value_and_grad: Callable
    grad: Callable
    compile: Callable[[Callable, list], Callable]  # for these arguments
    array: Callable[[Any], Any] = lambda x: x
    wait: Callable[[Any], Any] = lambda x: x


RATE = 0.01


def with_parameters(program: str) -> Parameters:
    def reset_to(nothing: Any) -> Callable[[list], None]:
        def reset(parameters: list) -> None:
            for parameter in parameters:
                parameter.grad = nothing

        return reset

    def descent(parameters: list) -> tuple[Callable, Callable]:
        def step() -> None:
            for parameter in parameters:
                parameter.data -= RATE * parameter.grad

        return lambda: reset(parameters), step

    def optimizer_of(sgd: Callable) -> Callable:
        def optimizer(parameters: list) -> tuple[Callable, Callable]:
            made = sgd(parameters, lr=RATE)
            return made.zero_grad, made.step

        return optimizer

    if program == "tinygrad_lite":
        leaf = functools.partial(tinygrad_lite.Tensor, requires_grad=True)
        return Parameters(np, leaf, lambda x: x, reset_to(None), optimizer_of(tinygrad_lite.SGD))
    if program == "micrograd":
        from micrograd.engine import Value

        reset = reset_to(0)
        return Parameters(None, lambda x: Value(float(x)), float, reset, descent)
    if program == "mygrad":
        import mygrad

        def reset(parameters: list) -> None:
            for parameter in parameters:
                parameter.null_grad()

        return Parameters(mygrad, mygrad.tensor, lambda x: x, reset, descent)
    import torch

    torch.set_num_threads(int(program.split()[1]))
    leaf = lambda x: torch.tensor(x).requires_grad_()  # noqa: E731
    return Parameters(torch, leaf, torch.tensor, reset_to(None), optimizer_of(torch.optim.SGD))


def with_functions(program: str) -> Functions:
    if program == "autograd":
        import autograd

        return Functions(autograd.numpy, autograd.value_and_grad, autograd.grad, lambda f, _: f)
    if program.startswith("jax"):
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_x64", True)  # else float64 becomes float32
        xp = jax.numpy
        return Functions(xp, jax.value_and_grad, jax.grad, lambda f, _: jax.jit(f), xp.asarray, jax.block_until_ready)
    compilers = {
        "tinygrad_lite": lambda f, _: f,
        "tinygrad_lite jit": lambda f, _: tinygrad_lite.jit(f),
        "tinygrad_lite jit, lower": lambda f, arguments: tinygrad_lite.jit(f).lower(*arguments),
    }
    return Functions(np, tinygrad_lite.value_and_grad, tinygrad_lite.grad, compilers[program])


WITH_PARAMETERS = {"tinygrad_lite", "micrograd", "mygrad", "torch, 1 thread", "torch, 2 threads"}


def loss_and_gradients(program: str, model: Callable, arguments: list, count: int, eager: bool = False) -> Run:
    """What computes the loss and its gradients by the first so many arguments."""
    if program in WITH_PARAMETERS:
        xp, parameter, constant, reset, _ = with_parameters(program)
        parameters, constants = [*map(parameter, arguments[:count])], [*map(constant, arguments[count:])]

        def run() -> Any:
            reset(parameters)
            loss = model(xp, *parameters, *constants)
            loss.backward()
            return loss, [x.grad for x in parameters]

        return run
    library = with_functions(program)
    function = library.value_and_grad(functools.partial(model, library.xp), tuple(range(count)))
    if not eager:
        function = library.compile(function, arguments)
    arrays = [*map(library.array, arguments)]
    return lambda: library.wait(function(*arrays))


def hessian_vector_product(program: str, model: Callable, arguments: list, vectors: list) -> Run:
    """The gradient of the inner product of the gradient and the vector; in JAX forward over reverse, its advice."""
    count, everything = len(vectors), [*arguments, *vectors]
    chosen = tuple(range(count))
    if program.startswith("torch"):
        torch, parameter, constant, *_ = with_parameters(program)
        leaves, rest = [*map(parameter, arguments[:count])], [*map(constant, everything[count:])]

        def run() -> Any:
            loss = model(torch, *leaves, *rest[:-count])
            gradients = torch.autograd.grad(loss, leaves, create_graph=True)
            inner = sum(torch.sum(g * v) for g, v in zip(gradients, rest[-count:], strict=True))
            return torch.autograd.grad(inner, leaves)

        return run
    library = with_functions(program)
    gradient = library.grad(functools.partial(model, library.xp), chosen)

    def inner_product(*everything: Any) -> Any:
        pairs = zip(gradient(*everything[:-count]), everything[-count:], strict=True)
        return sum(library.xp.sum(g * v) for g, v in pairs)

    def forward_over_reverse(*everything: Any) -> Any:
        import jax

        point, rest, vectors = everything[:count], everything[count:-count], everything[-count:]
        return jax.jvp(lambda *point: gradient(*point, *rest), point, vectors)[1]

    function = forward_over_reverse if program == "jax" else library.grad(inner_product, chosen)
    function = library.compile(function, everything)
    arrays = [*map(library.array, everything)]
    return lambda: library.wait(function(*arrays))


# --- Workloads --------------------------------------------------------------------------------------------------------


class Workload(NamedTuple):
    number: int
    work: Callable[[str], Run]  # what a program does
    programs: list[str]
    tolerance: float = 1e-9  # of an array, relative to its largest entry
    memory: bool = False
    steps: int = 1  # in a run


STEPS = 200
WITHOUT_MICROGRAD = [program for program in MODULES if program != "micrograd"]
FOR_CHAINS = [program for program in MODULES if "jit" not in program and program != "torch, 2 threads"]


def sgd(program: str) -> Run:
    """A line through examples that come one by one, as in train_linear.py."""
    zero, xs = np.float64(0), np.random.default_rng(0).normal(size=STEPS)
    examples = [*zip(xs, xs - 1, strict=True)]
    if program in WITH_PARAMETERS:
        xp, parameter, _, _, optimizer = with_parameters(program)
        floats = [(float(x), float(y)) for x, y in examples]  # a bit faster than NumPy's, for those with own numbers

        def train() -> Any:
            w, b = parameters = [parameter(zero), parameter(zero)]
            zero_grad, step = optimizer(parameters)
            for x, y in floats:
                zero_grad()
                squared_error(xp, w, b, x, y).backward()
                step()
            return parameters

        return train
    function, wait = step_by_hand, lambda x: x
    if program != "by hand":
        library = with_functions(program)
        gradient = library.grad(functools.partial(squared_error, library.xp), (0, 1))

        def sgd_step(w: Any, b: Any, x: Any, y: Any, lr: Any) -> Any:
            slope_w, slope_b = gradient(w, b, x, y)
            return w - lr * slope_w, b - lr * slope_b

        function, wait = library.compile(sgd_step, [zero, zero, *examples[0], RATE]), library.wait

    def run() -> Any:
        w, b = zero, zero
        for x, y in examples:
            w, b = function(w, b, x, y, RATE)
        return wait((w, b))

    return run


def normal(shapes: list[tuple[int, ...]], dtype: Any) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def gradients(
    model: Callable, by_hand: Callable, count: int, make: Callable[[], list], program: str, eager: bool = False
) -> Run:
    arguments = make()
    if program == "by hand":
        return lambda: by_hand(*arguments)
    return loss_and_gradients(program, model, arguments, count, eager)


def second_order(program: str) -> Run:
    arrays = normal([*layers(128, 64, 64, 10), *layers(128, 64, 64, 10)[:4]], np.float32)
    if program == "by hand":
        return lambda: network_product_by_hand(*arrays)
    return hessian_vector_product(program, network, arrays[:6], arrays[6:])


def layers(rows: int, inputs: int, hidden: int, outputs: int) -> list[tuple[int, ...]]:
    return [(inputs, hidden), (hidden,), (hidden, outputs), (outputs,), (rows, inputs), (rows, outputs)]


def dense(number: int, model: Callable, by_hand: Callable, shapes: list, dtype: Any) -> Workload:
    make = functools.partial(normal, shapes, dtype)
    work = functools.partial(gradients, model, by_hand, len(shapes) - 2, make)
    return Workload(number, work, WITHOUT_MICROGRAD, 1e-9 if dtype is float else 1e-3)


def large_arguments() -> list[Any]:
    return [np.float64(0.5), np.float64(0.1), *normal([(4_000_000,)], float)]


def multiplications(length: int) -> Workload:
    by_hand = functools.partial(chain_by_hand, length)
    work = functools.partial(
        gradients, functools.partial(chain, length), by_hand, 1, lambda: [np.float64(1)], eager=True
    )
    return Workload(8, work, FOR_CHAINS, memory=True)


WORKLOADS = {
    "one scalar SGD step": Workload(1, sgd, [*PROGRAMS], steps=STEPS),
    "linear 105x3 -> 1": dense(2, linear, linear_by_hand, [(3, 1), (1,), (105, 3), (105, 1)], float),
    "network 105x3 -> 16 -> 1": dense(3, network, network_by_hand, layers(105, 3, 16, 1), float),
    "network 128x64 -> 64 -> 10, float32": dense(4, network, network_by_hand, layers(128, 64, 64, 10), np.float32),
    "network 128x784 -> 128 -> 10, float32": dense(5, network, network_by_hand, layers(128, 784, 128, 10), np.float32),
    "network 512x784 -> 512 -> 10, float32": dense(6, network, network_by_hand, layers(512, 784, 512, 10), np.float32),
    "mean(tanh(w*x + b)**2) of 4,000,000": Workload(
        7, functools.partial(gradients, curve, curve_by_hand, 3, large_arguments), WITHOUT_MICROGRAD, memory=True
    ),
    **{f"chain of {n:,} multiplications": multiplications(n) for n in (1_000, 10_000, 100_000, 1_000_000)},
    "Hessian-vector product, 128x64 -> 64 -> 10": Workload(
        9, second_order, [program for program in WITHOUT_MICROGRAD if program != "mygrad"], 1e-3
    ),
}
IMPORT, IMPORT_NUMBER = "import in a fresh process", 10


# --- A process for each program ---------------------------------------------------------------------------------------


def serve(workload: str, program: str, reference: str, patience: float) -> None:
    """Print a report on the first run, and then, for each line of input, the seconds of a step."""
    _, work, _, _, _, steps = WORKLOADS[workload]
    run = work(program)
    gc.collect()
    with contextlib.suppress(OSError):  # where this works, peaks from before are forgotten
        Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    signal.setitimer(signal.ITIMER_REAL, patience)  # ends the process, whatever library it is in
    try:
        results = run()
    except Exception as exception:
        traceback.print_exc(limit=-5)
        print(json.dumps({"failed": type(exception).__name__}), flush=True)
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    report: dict[str, Any] = {"memory": peak_memory() - before}
    # Tensors of most libraries have their array in .data; what is an array or a number is that by itself.
    arrays = [np.asarray(getattr(x, "data", x)) for x in flattened(results)]
    if program == "by hand":
        np.savez(reference, *arrays)
    else:
        with np.load(reference) as expected:
            report["difference"] = max(difference(a, b) for a, b in zip(arrays, expected.values(), strict=True))
    print(json.dumps(report), flush=True)
    del results, arrays
    timer = timeit.Timer(run, gc.enable)  # timeit would measure without the garbage collection that a library causes
    runs = 0
    for _ in sys.stdin:
        if runs:
            seconds = timer.timeit(runs) / runs
        else:
            number, total = timer.autorange()
            seconds, runs = total / number, max(1, round(TURN * number / total))
        print(seconds / steps, flush=True)


def peak_memory() -> int:
    """In bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def flattened(tree: Any) -> list[Any]:
    return [x for item in tree for x in flattened(item)] if isinstance(tree, (list, tuple)) else [tree]


def difference(found: Any, expected: Any) -> float:
    if found.shape != expected.shape:
        return np.inf
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def environment() -> dict[str, str]:
    """Without what this machine sets for threads and kernels, and with bytecode, as users have it."""
    return {key: x for key, x in os.environ.items() if not key.startswith(("OPENBLAS_", "OMP_", "MKL_", "PYTHONDONT"))}


class Child:
    """A program's process: it reports on its first run, and then waits for its turns."""

    def __init__(self, name: str, program: str, reference: str, patience: float, stack: contextlib.ExitStack) -> None:
        self.name, self.patience = f"{name}: {program}", patience
        self.errors: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        command = [sys.executable, __file__, "--serve", name, program, reference, "--patience", str(patience)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment(), stderr=self.errors, **pipes)
        stack.enter_context(self.process)

    def report(self) -> dict[str, Any]:
        if line := self.process.stdout.readline():
            report = json.loads(line)
        elif (code := self.process.wait()) < 0:
            late = code == -signal.SIGALRM
            report = {"failed": f"over {self.patience:g} s" if late else signal.Signals(-code).name}
        else:
            self.stop(f"ended with exit code {code}")
        if report.get("failed", "over").split()[0] not in ("over", "RecursionError", "MemoryError"):
            print(f"{self.name}: {report['failed']}\n{self.said()}", file=sys.stderr)
        return report

    def turn(self) -> float:
        time.sleep(PAUSE)
        print(file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline() or self.stop("ended in a later run"))

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")

    def stop(self, why: str) -> Any:
        sys.exit(f"{self.name} {why}\n{self.said()}")


Measured = dict[str, dict[str, Any]]


def measure(name: str, programs: list[str], repeats: int, patience: float) -> Measured:
    """For each program the seconds of a step and the memory of the first run, or why it failed."""
    workload = WORKLOADS[name]
    measured: Measured = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        children = {}
        for program in programs:
            child = Child(name, program, f"{folder}/by_hand.npz", patience, stack)
            report = child.report()
            if (off := report.get("difference", 0)) > workload.tolerance:
                sys.exit(f"{child.name} differs by {off:.2g} of the largest entry from the results by hand")
            measured[program] = {key: report[key] for key in ("memory", "failed") if key in report}
            if not workload.memory:
                measured[program].pop("memory", None)
            if "failed" not in report:
                children[program] = child
        # The first turn finds out how many runs make a turn, and is not counted.
        if max([child.turn() * workload.steps for child in children.values()]) > 1:
            repeats = min(repeats, 7)
        seconds: dict[str, list[float]] = {program: [] for program in children}
        for _ in range(repeats):
            for program, child in children.items():
                seconds[program].append(child.turn())
    for program, times in seconds.items():
        measured[program] = {"seconds": statistics.median(times), **measured[program]}
    return measured


# --- Imports ----------------------------------------------------------------------------------------------------------


def measure_imports(programs: list[str], repeats: int) -> Measured:
    """For each program the seconds that the import of its module adds to a process, and the bytes to install."""
    statements = {"": "", **{program: f"import {MODULES[program]}" for program in programs}}
    seconds: dict[str, list[float]] = {program: [] for program in statements}
    for turn in range(repeats + 1):
        for program, statement in statements.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], cwd=ROOT, env=environment(), check=True)
            if turn:  # the first one fills the caches of files
                seconds[program].append(time.perf_counter() - start)
    empty = seconds.pop("")
    return {
        program: {
            "seconds": max(0.0, statistics.median(map(float.__sub__, times, empty))),
            "size": size_on_disk(MODULES[program].split(".")[0]),
        }
        for program, times in seconds.items()
    }


def size_on_disk(module: str) -> int:
    """Bytes of a distribution and all that it requires, without the bytecode that Python adds."""
    if module == "tinygrad_lite":
        return (ROOT / "tinygrad_lite.py").stat().st_size + size_on_disk("numpy")
    from packaging.requirements import Requirement

    size, found, names = 0, set(), [module]
    while names:
        if (name := re.sub(r"[-_.]+", "-", names.pop()).lower()) in found:
            continue
        found.add(name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            distribution = importlib.metadata.distribution(name)
            paths = [Path(str(distribution.locate_file(file))) for file in distribution.files or ()]
            size += sum(path.stat().st_size for path in paths if path.suffix != ".pyc" and path.is_file())
            for requirement in map(Requirement, distribution.requires or ()):
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    names.append(requirement.name)
    return size


# --- Table and picture ------------------------------------------------------------------------------------------------


def times(ratio: float) -> str:
    return f"{ratio:.3g}" if ratio < 1000 else f"{ratio:,.0f}"


def quantity(x: float, unit: str) -> str:
    prefixes = {"": 1.0, "m": 1e-3, "u": 1e-6} if unit == "s" else {"M": 1e6}
    prefix = next((prefix for prefix, factor in prefixes.items() if x >= factor), [*prefixes][-1])
    return f"{times(x / prefixes[prefix])} {prefix}{unit}"


def show(name: str, measured: Measured) -> None:
    """Print a table, and add the ratio to code by hand to the measurements."""
    hand, eager = (measured[program]["seconds"] for program in ("by hand", "tinygrad_lite"))
    print(f"\n{name}\n  {'':26}{'time':>11}{'/ by hand':>14}{'/ tinygrad_lite':>17}")
    for program, numbers in measured.items():
        if "failed" in numbers:
            print(f"  {program:26}{'-':>11}    did not survive: {numbers['failed']}")
            continue
        seconds = numbers["seconds"]
        numbers["ratio"] = seconds / hand
        line = f"  {program:26}{quantity(seconds, 's'):>11}{seconds / hand:14.3f}{seconds / eager:17.3f}"
        for key, what in (("memory", "of memory"), ("size", "on disk")):
            line += f"{quantity(numbers[key], 'B'):>15} {what}" if key in numbers else ""
        print(line, flush=True)


def table(results: dict[str, Any]) -> str:
    """For the README: the time of code by hand, and of programs as multiples of it; memory and size as they are."""
    workloads = results["workloads"]
    programs = [program for program in PROGRAMS if any(program in measured for measured in workloads.values())]
    lines = [f"| | {' | '.join(programs)} |", f"|{' --- |' * (len(programs) + 1)}"]
    for name, measured in workloads.items():
        numbers = [measured.get(program, {}) for program in programs]
        hand = numbers[0]["seconds"]
        cells = [times(x["seconds"] / hand) if "seconds" in x else x.get("failed", "") for x in numbers]
        lines.append(f"| {name} | {' | '.join([quantity(hand, 's'), *cells[1:]])} |")
        for key, label in (("memory", "its peak memory"), ("size", "size on disk of what one must install")):
            if key in numbers[0]:
                cells = [quantity(x[key], "B") if key in x else x.get("failed", "") for x in numbers]
                lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: dict[str, Any], path: Path) -> None:
    """A row for each workload, a marker for each program: its time as a multiple of tinygrad_lite's without jit."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "results", "font.size": 8.5})
    from matplotlib import pyplot

    workloads = results["workloads"]
    figure, axes = pyplot.subplots(figsize=(9.4, 8.6), layout="constrained")
    labels = []
    for row, (name, measured) in enumerate(workloads.items()):
        failed = [f"{program} ({x['failed']})" for program, x in measured.items() if "failed" in x]
        labels.append(textwrap.fill(name, 44) + (f"\nnot {textwrap.fill(', '.join(failed), 36)}" if failed else ""))
        if row % 2:
            axes.axhspan(row - 0.5, row + 0.5, color="#f2f2f2", zorder=0)
    for i, (program, (_, colour, marker)) in enumerate(PROGRAMS.items()):
        points = [
            (measured[program]["seconds"] / measured["tinygrad_lite"]["seconds"], row + (i - 4.5) * 0.075)
            for row, measured in enumerate(workloads.values())
            if measured.get(program, {}).get("seconds", 0) > 0
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=7, label=program)
    axes.axvline(1, color="#0072B2", linewidth=0.8, zorder=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlabel("time as a multiple of tinygrad_lite's without jit: left of 1 is faster")
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    versions = ", ".join(f"{module} {version}" for module, version in results["versions"].items())
    footer = "{date}, {processor}, {cores} cores, Python {python}".format(**results)
    figure.supxlabel(f"{footer}\n{versions}", fontsize=7, color="#555555")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def circumstances(programs: list[str]) -> dict[str, Any]:
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    modules = dict.fromkeys(MODULES[program].split(".")[0] for program in programs)
    versions = {m: importlib.metadata.version(m) for m in modules if m != "tinygrad_lite"}
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {"tinygrad_lite": tinygrad_lite.__version__, **versions},
    }


# --- Function by function ---------------------------------------------------------------------------------------------
# The gradient of the sum of what a function returns, times constants; in one process, the two engines by turns.

FUNCTIONS: dict[str, Callable] = {
    "np.exp(x)": lambda xp, x: xp.exp(x),
    "np.sum(x, axis=0)": lambda xp, x: xp.sum(x, axis=0),
    "np.mean(x)": lambda xp, x: xp.mean(x),
    "np.dot(x, x.T)": lambda xp, x: xp.dot(x, x.T),
    "np.max(x, axis=0)": lambda xp, x: xp.max(x, axis=0),
    "np.where(x > 1, x, 2 * x)": lambda xp, x: xp.where(x > 1, x, 2 * x),
    "np.concatenate([x, 2 * x])": lambda xp, x: xp.concatenate([x, 2 * x]),
    "np.reshape(x, -1)": lambda xp, x: xp.reshape(x, -1),
    "x[0]": lambda xp, x: x[0],
    "np.linalg.norm(x)": lambda xp, x: xp.linalg.norm(x),
}


def function_times(f: Callable, n: int, repeats: int) -> list[float]:
    """The seconds that a gradient with respect to n x n numbers takes here, and in HIPS autograd."""
    import autograd  # type: ignore[import-not-found]
    import autograd.numpy

    rng = np.random.default_rng(0)
    x = rng.uniform(0.5, 1.5, (n, n))
    weights = rng.uniform(0.5, 1.5, np.shape(f(np, x)))
    here = tinygrad_lite.grad(lambda x: np.sum(f(np, x) * weights))
    there = autograd.grad(lambda x: autograd.numpy.sum(f(autograd.numpy, x) * weights))
    np.testing.assert_allclose(here(x), there(x), rtol=1e-12)
    timers = [timeit.Timer(lambda gradient=gradient: gradient(x)) for gradient in (here, there)]
    number = max(1, int(TURN / timers[0].timeit(1)))
    turns = [[timer.timeit(number) / number for timer in timers] for _ in range(repeats)]
    return [min(seconds) for seconds in zip(*turns, strict=True)]


def function_table(repeats: int) -> str:
    lines = ["| gradient of | 6 x 6 | autograd | 300 x 300 | autograd |", "| --- | --- | --- | --- | --- |"]
    for name, f in FUNCTIONS.items():
        pairs = [function_times(f, n, repeats) for n in (6, 300)]
        cells = [cell for here, there in pairs for cell in (quantity(here, "s"), f"{there / here:.2f}")]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    numbers = sorted({workload.number for workload in WORKLOADS.values()} | {IMPORT_NUMBER})
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workloads", type=int, nargs="+", choices=numbers, default=numbers, help="by number")
    parser.add_argument("--repeats", type=int, default=15, help="turns of each program (%(default)s)")
    parser.add_argument("--patience", type=float, default=60, help="seconds for a first run (%(default)s)")
    parser.add_argument("--functions", action="store_true", help="ten functions beside autograd, and nothing else")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(*options.serve, options.patience)

    if options.functions:
        return print(function_table(options.repeats))
    here = [p for p, module in MODULES.items() if importlib.util.find_spec(module.split(".")[0])]
    results = {**circumstances(here), "workloads": {}}
    for name, workload in WORKLOADS.items():
        if workload.number in options.workloads:
            programs = [program for program in workload.programs if program in here]
            measured = results["workloads"][name] = measure(name, programs, options.repeats, options.patience)
            show(name, measured)
    if IMPORT_NUMBER in options.workloads:
        programs = [program for program in FOR_CHAINS if program in here]
        measured = results["workloads"][IMPORT] = measure_imports(programs, options.repeats)
        show(f"{IMPORT}, by hand of numpy", measured)
        more = measured["tinygrad_lite"]["seconds"] - measured["by hand"]["seconds"]
        print(f"  tinygrad_lite takes {1e3 * more:.1f} ms more than numpy, which it imports")
    if missing := dict.fromkeys(MODULES[program].split(".")[0] for program in MODULES if program not in here):
        print(f"\nnot installed: {', '.join(missing)}")
    if options.workloads == numbers and options.repeats >= 7:
        folder = Path(__file__).parent
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        draw(results, folder / "results.svg")
        print(f"\n{table(results)}")
    return None


if __name__ == "__main__":
    main()
