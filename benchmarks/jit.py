"""How fast the code is that jit generates: against the same work written by hand in NumPy, micrograd and PyTorch.

    uv run --group bench benchmarks/jit.py

Each program has a process of its own, and these take turns, so that all meet the same machine. Their results are
compared before anything is timed. The table shows the median time of a step and how it compares with code by hand.
Programs that are not installed are left out: PyTorch has to be installed beside the group, as its default wheel is
gigabytes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tinygrad_lite import SGD, Tensor, grad, jit, value_and_grad  # noqa: E402

REPEATS = 25
Work = tuple[Callable[[], Any], int]  # what runs so many steps and returns numbers to compare, and how many


# --- One scalar SGD step ----------------------------------------------------------------------------------------------
# A line through examples that come one by one, as in train_linear.py.

STEPS = 2000
XS = np.random.default_rng(0).normal(size=STEPS)
YS, RATE = XS - 1, 0.01


def step_by_hand(w: Any, b: Any, x: Any, y: Any, lr: float) -> tuple[Any, Any]:
    error = w * x + b - y
    slope = 2 * error
    return w - lr * (slope * x), b - lr * slope


def squared_error(w: Any, b: Any, x: Any, y: Any) -> Any:
    return ((w * x + b - y) ** 2).mean()


def step(w: Any, b: Any, x: Any, y: Any, lr: Any) -> tuple[Any, Any]:
    slope_w, slope_b = grad(squared_error, (0, 1))(w, b, x, y)
    return w - lr * slope_w, b - lr * slope_b


def scalar(program: str) -> Work:
    compiled = jit(step)
    lowered = compiled.lower(np.float64(0), np.float64(0), XS[0], YS[0], RATE)
    function = {"hand": step_by_hand, "lower": lowered, "jit": compiled}.get(program)

    def steps() -> Any:
        w, b = np.float64(0), np.float64(0)
        for x, y in zip(XS, YS, strict=True):
            w, b = function(w, b, x, y, RATE)
        return [w, b]

    def eager() -> Any:
        w, b = Tensor(0.0, requires_grad=True), Tensor(0.0, requires_grad=True)
        optimizer = SGD([w, b], lr=RATE)
        for x, y in zip(XS, YS, strict=True):
            optimizer.zero_grad()
            ((w * x + b - y) ** 2).backward()
            optimizer.step()
        return [w.item(), b.item()]

    def micrograd() -> Any:
        from micrograd.engine import Value

        w, b = Value(0.0), Value(0.0)
        for x, y in zip(XS.tolist(), YS.tolist(), strict=True):
            w.grad = b.grad = 0
            ((w * x + b - y) ** 2).backward()
            w.data -= RATE * w.grad
            b.data -= RATE * b.grad
        return [w.data, b.data]

    return {"eager": eager, "micrograd": micrograd}.get(program, steps), STEPS


# --- Networks ---------------------------------------------------------------------------------------------------------


def network_by_hand(W: Any, b: Any, V: Any, c: Any, X: Any, y: Any) -> Any:  # noqa: N803
    h = np.tanh(X @ W + b)
    error = h @ V + c - y
    loss = (error * error).sum() / error.size
    d_error = 2 / error.size * error
    d_h = d_error @ V.T
    d_z = d_h * (1 - h * h)
    return loss, (X.T @ d_z, d_z.sum(axis=0), h.T @ d_error, d_error.sum(axis=0))


def network(W: Any, b: Any, V: Any, c: Any, X: Any, y: Any) -> Any:  # noqa: N803
    h = np.tanh(X @ W + b)
    error = h @ V + c - y
    return np.mean(error**2)


def layers(rows: int, inputs: int, hidden: int, outputs: int, dtype: Any) -> Callable[[str], Work]:
    def work(program: str) -> Work:
        rng = np.random.default_rng(0)
        shapes = (inputs, hidden), (hidden,), (hidden, outputs), (outputs,), (rows, inputs), (rows, outputs)
        arrays = [rng.normal(size=shape).astype(dtype) for shape in shapes]
        compiled = jit(value_and_grad(network, (0, 1, 2, 3)))
        functions = {"hand": network_by_hand, "lower": compiled.lower(*arrays), "jit": compiled}
        if program.startswith("torch"):
            import torch

            torch.set_num_threads(int(program[-1]))
            tensors = [torch.tensor(array) for array in arrays]
            for parameter in tensors[:4]:
                parameter.requires_grad_()

            def by_torch(W: Any, b: Any, V: Any, c: Any, X: Any, y: Any) -> Any:  # noqa: N803
                loss = ((torch.tanh(X @ W + b) @ V + c - y) ** 2).mean()
                return loss.item(), torch.autograd.grad(loss, tensors[:4])

            return lambda: [by_torch(*tensors) for _ in range(50)][-1], 50
        if program == "eager":
            parameters = [Tensor(array, requires_grad=True) for array in arrays[:4]]

            def eager(*arrays: Any) -> Any:
                for parameter in parameters:
                    parameter.grad = None
                loss = network(*parameters, *arrays[4:])
                loss.backward()
                return loss.item(), [parameter.grad for parameter in parameters]

            functions["eager"] = eager
        return lambda: [functions[program](*arrays) for _ in range(50)][-1], 50

    return work


# --- Large arrays -----------------------------------------------------------------------------------------------------


def curve_by_hand(w: Any, b: Any, x: Any) -> Any:
    t = np.tanh(w * x + b)
    d_z = 2 / x.size * t * (1 - t * t)
    return (t * t).sum() / x.size, ((d_z * x).sum(), d_z.sum(), d_z * w)


def curve(w: Any, b: Any, x: Any) -> Any:
    return np.mean(np.tanh(w * x + b) ** 2)


def large(program: str) -> Work:
    arguments = np.float64(0.5), np.float64(0.1), np.random.default_rng(0).normal(size=4_000_000)
    compiled = jit(value_and_grad(curve, (0, 1, 2)))
    function = {"hand": curve_by_hand, "lower": compiled.lower(*arguments), "jit": compiled}[program]
    return lambda: function(*arguments), 1


WORKLOADS = {
    "one scalar SGD step": (scalar, ["hand", "lower", "jit", "eager", "micrograd"]),
    "105x3 -> 16 -> 1": (layers(105, 3, 16, 1, float), ["hand", "lower", "jit", "eager", "torch 1", "torch 2"]),
    "128x64 -> 64 -> 10, float32": (
        layers(128, 64, 64, 10, np.float32),
        ["hand", "lower", "jit", "eager", "torch 1", "torch 2"],
    ),
    "mean(tanh(w*x + b)**2), 4,000,000 numbers": (large, ["hand", "lower", "jit"]),
}


# --- Taking turns -----------------------------------------------------------------------------------------------------


def serve(workload: str, program: str) -> None:
    """Print the results and the peak of memory, and then, for each line of input, the seconds that a step takes."""
    run, steps = WORKLOADS[workload][0](program)
    value = run()
    tracemalloc.start()
    if steps == 1:
        run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    flat = np.concatenate([np.ravel(np.asarray(x, float)) for x in [value[0], *value[1:]] for x in flattened(x)])
    print(json.dumps({"results": [flat[:1000].tolist(), float(np.square(flat).sum())], "peak": peak}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print((time.perf_counter() - start) / steps, flush=True)


def flattened(tree: Any) -> list[Any]:
    return [x for item in tree for x in flattened(item)] if isinstance(tree, (list, tuple)) else [tree]


def measure(workload: str, programs: list[str]) -> dict[str, tuple[float, int]]:
    """For each program the median of the seconds of a step, and the peak of memory in bytes."""
    environment = {key: x for key, x in os.environ.items() if not key.startswith("OPENBLAS_")}
    with contextlib.ExitStack() as stack:
        children = {}
        for program in programs:
            command = [sys.executable, __file__, "--serve", workload, program]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            children[program] = stack.enter_context(subprocess.Popen(command, env=environment, **pipes))
        answers = {program: json.loads(child.stdout.readline()) for program, child in children.items()}
        for program, answer in answers.items():
            for found, expected in zip(answer["results"], answers["hand"]["results"], strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4, err_msg=f"{workload}: {program}")
        seconds: dict[str, list[float]] = {program: [] for program in programs}
        for _ in range(REPEATS):
            for program, child in children.items():
                print(file=child.stdin, flush=True)
                seconds[program].append(float(child.stdout.readline()))
        for child in children.values():
            child.stdin.close()
    return {program: (statistics.median(times), answers[program]["peak"]) for program, times in seconds.items()}


def is_installed(program: str) -> bool:
    module = program.split()[0]
    return module not in ("micrograd", "torch") or importlib.util.find_spec(module) is not None


def main() -> None:
    for workload, (_, programs) in WORKLOADS.items():
        here = [*filter(is_installed, programs)]
        measured = measure(workload, here)
        print(f"\n{workload}")
        for program, (seconds, peak) in measured.items():
            ratio = seconds / measured["hand"][0]
            memory = f"  peak {peak / 2**20:6.1f} MiB ({peak / measured['hand'][1]:.3f} of by hand)" if peak else ""
            print(f"  {program:10} {1e6 * seconds:10.3f} us  {ratio:6.3f} of by hand{memory}")
        if missing := [program for program in programs if program not in here]:
            print(f"  not installed: {', '.join(missing)}")
        for program in ("lower", "jit"):
            if "micrograd" in measured:
                print(
                    f"  {program} is {measured['micrograd'][0] / measured[program][0]:.1f} times as fast as micrograd"
                )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, str(ROOT / "train_linear.py")], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"\ntrain_linear.py, 5,000,000 steps: {spent:.2f} s of processor time")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    else:
        main()
