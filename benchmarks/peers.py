"""How fast this project and its peers do the same work, and what they need for it.

    uv run --group bench benchmarks/peers.py
    uv run --group bench benchmarks/peers.py --workloads 1 3 --turns 2
    uv run --group bench benchmarks/peers.py --functions

Each program of ``programs.py`` first does the work once in a process of its own, where its results are compared with
those of NumPy code written by hand. Then pyperf takes the time of those that survive, by turns and in new processes,
so that all meet the same machine. Tables show the median time of a run of the code by hand, and those of the others as
multiples of it. Memory is how far the first run raised the peak of the process's resident set, so what ``jit`` needs
to make its code is a part of it; outside Linux, which can forget earlier peaks, these may hide a part of it. JAX runs
without ``jit`` in the chains of multiplications, which are Python loops everywhere. "source" is what ``jit`` prints,
compiled by numba, or by JAX with its functions in place of NumPy's.

A peer that is not installed is left out. PyTorch is not in the group, as its default wheel is gigabytes: install it
beside the group for its rows. NumPy takes as many threads as it does by default. A run of all workloads, with 5 turns
or more, writes ``results.json`` and the picture ``results.svg`` beside this file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import timeit
from functools import partial
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from programs import PROGRAMS, WORKLOADS, tinygrad_lite  # noqa: E402


def compare(name: str, program: str, patience: float = 60) -> dict[str, Any]:
    """The memory of a first run in a process of its own, or why it did not survive."""
    call = [sys.executable, "-c", f"import programs; print(programs.ready({name!r}, {program!r})[1])"]
    try:
        done = subprocess.run(call, cwd=HERE, capture_output=True, text=True, timeout=patience)
    except subprocess.TimeoutExpired:
        return {"failed": f"over {patience:g} s"}
    if done.returncode == 0:
        return {"memory": int(done.stdout)} if WORKLOADS[name].memory else {}
    failed = re.findall(r"^(?:[\w.]+\.)?(RecursionError|MemoryError|TypingError)\b", done.stderr, re.MULTILINE)
    if done.returncode < 0:
        failed = [signal.Signals(-done.returncode).name]
    return {"failed": failed[0]} if failed else sys.exit(done.stderr)


def measure(name: str, programs: list[str], turns: int) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """For each program the median seconds of a step and the memory, or why it failed; and what pyperf says of here."""
    import pyperf

    measured = {program: compare(name, program) for program in programs}
    loops = dict.fromkeys(programs, 0)  # 0: to calibrate
    with tempfile.TemporaryDirectory() as folder:
        for i, program in [*enumerate(programs)] * turns:
            numbers = measured[program]
            if "failed" not in numbers and numbers.get("seconds", 0) < 1:  # else one turn does, which is three values
                setup = f"from programs import ready; run = ready({name!r}, {program!r})[0]"
                options = f"-q --processes=1 --values=3 --warmups=1 --loops={loops[program]} --append={folder}/{i}"
                call = ["timeit", "run()", f"--inner-loops={WORKLOADS[name].steps}", *options.split(), "--setup", setup]
                subprocess.run([sys.executable, "-m", "pyperf", *call], cwd=HERE, stdout=subprocess.DEVNULL, check=True)
                found = pyperf.Benchmark.load(f"{folder}/{i}")
                numbers["seconds"], loops[program] = found.median(), found.get_loops()
    nothing = measured.pop("", {"seconds": 0})["seconds"]
    for numbers in measured.values():
        if "seconds" in numbers:
            numbers["seconds"] = max(0, numbers["seconds"] - nothing)
            numbers["ratio"] = numbers["seconds"] / measured["by hand"]["seconds"]
    return measured, found.get_metadata()


# --- Tables and picture -----------------------------------------------------------------------------------------------


def times(ratio: float) -> str:
    return f"{ratio:.3g}" if ratio < 1000 else f"{ratio:,.0f}"


def duration(x: float) -> str:
    return f"{times(x)} s" if x >= 1 else f"{times(1e3 * x)} ms" if x >= 1e-3 else f"{times(1e6 * x)} us"


def table(results: dict[str, Any]) -> str:
    """For the README: the time of code by hand, and of programs as multiples of it; memory as it is."""
    workloads = results["workloads"]
    programs = [program for program in PROGRAMS if any(program in measured for measured in workloads.values())]
    lines = [f"| | {' | '.join(programs)} |", f"|{' --- |' * (len(programs) + 1)}"]
    for name, measured in workloads.items():
        found = [measured.get(program, {}) for program in programs]
        cells = [times(x["ratio"]) if "ratio" in x else x.get("failed", "") for x in found[1:]]
        lines.append(f"| {name} | {' | '.join([duration(found[0]['seconds']), *cells])} |")
        if "memory" in found[0]:
            cells = [f"{times(x['memory'] / 1e6)} MB" if "memory" in x else x.get("failed", "") for x in found]
            lines.append(f"| its peak memory | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: dict[str, Any], path: Path) -> None:
    """A row for each workload, a marker for each program: its time as a multiple of tinygrad_lite's without jit."""
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.hashsalt": "results", "font.size": 8.5})
    figure, axes = pyplot.subplots(figsize=(9.4, 8.6), layout="constrained")
    labels, workloads = [], results["workloads"]
    for row, (name, measured) in enumerate(workloads.items()):
        failed = ", ".join(f"{program} ({x['failed']})" for program, x in measured.items() if "failed" in x)
        labels.append(textwrap.fill(name, 44) + (f"\nnot {textwrap.fill(failed, 36)}" if failed else ""))
        axes.axhspan(row - 0.5, row + 0.5, color="#f2f2f2" if row % 2 else "white", zorder=0)
    for i, (program, (_, colour, marker)) in enumerate(PROGRAMS.items()):
        x = [m.get(program, {}).get("seconds", np.nan) / m["tinygrad_lite"]["seconds"] for m in workloads.values()]
        if not np.isnan(x).all():
            rows = np.arange(len(x)) + 0.07 * (i - (len(PROGRAMS) - 1) / 2)
            axes.plot(x, rows, marker, color=colour, markersize=7, label=program)
    axes.axvline(1, color="#0072B2", linewidth=0.8, zorder=1)
    axes.set(xscale="log", yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.5, -0.5))
    axes.set_xlabel("time as a multiple of tinygrad_lite's without jit: left of 1 is faster")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    versions = ", ".join(f"{module} {version}" for module, version in results["versions"].items())
    footer = "{date}, {processor}, {cores} cores, Python {python}".format(**results)
    figure.supxlabel(f"{footer}\n{versions}", fontsize=7, color="#555555")
    figure.savefig(path, metadata={"Date": None})


FUNCTIONS = """np.exp(x); np.sum(x, axis=0); np.mean(x); np.dot(x, x.T); np.max(x, axis=0); np.where(x > 1, x, 2 * x)
np.concatenate([x, 2 * x]); np.reshape(x, -1); x[0]; np.linalg.norm(x)"""


def function_times(text: str, n: int, turns: int) -> Any:
    """The seconds that the gradient of the sum of a function's results, times constants, takes here and in autograd."""
    f, rng = eval(f"lambda np, x: {text}"), np.random.default_rng(0)
    x = rng.uniform(0.5, 1.5, (n, n))
    weights = rng.uniform(0.5, 1.5, np.shape(f(np, x)))
    libraries = (tinygrad_lite, np), (import_module("autograd"), import_module("autograd.numpy"))
    here, there = (library.grad(lambda x, xp=xp: xp.sum(f(xp, x) * weights)) for library, xp in libraries)
    np.testing.assert_allclose(here(x), there(x), rtol=1e-12)
    timers = [timeit.Timer(partial(gradient, x)) for gradient in (here, there)]
    number, _ = timers[0].autorange()
    return np.min([[timer.timeit(number) / number for timer in timers] for _ in range(turns)], axis=0)


def function_table(turns: int) -> str:
    lines = ["| gradient of | 6 x 6 | autograd | 300 x 300 | autograd |", "| --- | --- | --- | --- | --- |"]
    for text in re.split("; |\n", FUNCTIONS):
        (a, b), (c, d) = (function_times(text, n, turns) for n in (6, 300))
        lines.append(f"| `{text}` | {duration(a)} | {b / a:.2f} | {duration(c)} | {d / c:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser, numbers = argparse.ArgumentParser(description=__doc__.partition("\n")[0]), [*range(1, 11)]
    parser.add_argument("--workloads", type=int, nargs="+", choices=numbers, default=numbers, help="by number")
    parser.add_argument("--turns", type=int, default=5, help="of each program, with three values (%(default)s)")
    parser.add_argument("--functions", action="store_true", help="ten functions beside autograd, and nothing else")
    options = parser.parse_args()
    if options.functions:
        return print(function_table(options.turns))
    modules = {program: module.split(".")[0] for program, (module, _, _) in PROGRAMS.items()}
    versions = {module: metadata.version(module) for module in modules.values() if util.find_spec(module)}
    results = {"date": datetime.date.today().isoformat(), "versions": versions, "workloads": {}}
    for name, workload in WORKLOADS.items():
        if workload.number in options.workloads:
            programs = [program for program in workload.programs if not program or modules[program] in versions]
            results["workloads"][name], here = measure(name, programs, options.turns)
            print(f"\n{table({'workloads': {name: results['workloads'][name]}})}", flush=True)
    results |= {"processor": here.get("cpu_model_name", "?"), "cores": here["cpu_count"]}
    results["python"] = here["python_version"].split()[0]
    print(f"\nnot installed: {', '.join({*modules.values()} - {*versions}) or 'none'}")
    if options.workloads == numbers and options.turns >= 5:
        (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        draw(results, HERE / "results.svg")
        print(f"\n{table(results)}")
    return None


if __name__ == "__main__":
    main()
