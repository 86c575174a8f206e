# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy>=2.0", "pandas>=2.2.2", "kagglehub>=1.0", "tqdm>=4.66"]
# ///
"""The scalar job: fit y = w * x + b by stochastic gradient descent, one example at a time.

Without --data it makes its own: x = 0, 1, 2, ... and y = x - 1. With --batch-size above 1 the same model runs on
arrays instead of numbers. Each step is NumPy code that jit generates from the model; with --eager it is the loop of
backward() and step() that one writes first.

    python train_linear.py
    python train_linear.py --rows 1000 --save-data line.csv
    python train_linear.py --data line.csv --batch-size 64 --json
    python train_linear.py --dask --data "part-*.csv" --batch-size 1000000

With --dask the same model runs on a Dask cluster, whose workers make or read the rows: only w and b come back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import glob
import io
import itertools
import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from tinygrad_lite import SGD, Tensor, grad, jit

Array = NDArray[np.float64]
Compute = Callable[..., tuple[Any, ...]]

FEWEST_ROWS = 5
LARGE_BATCH = 1_000  # rows from which on a batch is a range of neighbours
CHUNK = 2_000_000  # rows that a worker makes at a time: 16 MB for each array
BLUE, ORANGE = "#0072b2", "#d55e00"  # which the colour-blind can tell apart
SMALL_FILE = 100_000  # rows
FEWEST_BYTES = 200_000_000  # for a worker, of which Python with NumPy, pandas and Dask takes 150,000,000
IGNORE_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"  # in workers: it is not for them
DASK_SECONDS = 4.0  # to reach a scheduler, and again until it has a worker


# --- What both scripts share ------------------------------------------------------------------------------------------
# What the user typed or gave and cannot be used is one sentence on standard error and the exit code 2.


class InputError(Exception):
    """What the user can mend, said in one sentence."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises its errors as InputErrors."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (--help lists the options)")


def number(convert: Callable[[str], float], rule: str, low: float, high: float = math.inf) -> Callable[[str], float]:
    """The type of an option for argparse: a finite number from ``low`` to ``high``, which ``rule`` says in words."""

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= convert(text) <= high and convert(text) < math.inf:
                return convert(text)
        raise argparse.ArgumentTypeError(f"must be {rule}, not {text!r}")

    return parse


count = number(int, "an integer, 1 or more", 1)
count_or_none = number(int, "an integer, 0 or more", 0)
rate = number(float, "a finite number above 0", math.ulp(0))


def run(job: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None) -> int:
    """The exit code of a job: its own, 2 for bad input, 130 after Ctrl-C, 141 if nobody reads standard output."""
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # Lines come out as they are printed, and the name of a file that cannot be encoded does not stop them.
            sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
        with np.errstate(all="ignore"):  # an overflow shows in the loss
            code = job(argv)
        sys.stdout.flush()
        return code
    except InputError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except MemoryError:
        print("error: this takes more memory than there is: use fewer rows", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as under "| head"; Python still flushes at exit, and that must go somewhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def progress(steps: Iterable[Any], total: int, unit: str, what: str | None = None) -> tqdm:
    """The steps, with a bar on standard error when that is a terminal and they take longer than a second."""
    hidden = None if sys.stderr else True  # None: where it is no terminal
    return tqdm(steps, what, min(total, sys.maxsize), unit=f" {unit}s", delay=1, leave=False, disable=hidden)


class Plot:
    """The picture of --plot: the loss after each epoch on the left, ``fit`` on the right to draw on.

    Made before the training, so that it shows at once if matplotlib is not there.
    """

    def __init__(self, path: str):
        try:
            from matplotlib.figure import Figure
        except ImportError:
            script = Path(sys.argv[0]).name
            raise InputError(f"--plot needs matplotlib: uv run --with matplotlib {script} --plot {path}") from None
        self.path, self.figure = path, Figure(figsize=(11, 4.5), layout="constrained")
        self.loss, self.fit = self.figure.subplots(1, 2)
        self.loss.set(yscale="log", xlabel="epoch", ylabel="mean squared error of scaled data", title="Loss")

    def save(self, losses: dict[str, list[float]]) -> None:
        """Draw curves with these names, and write the file."""
        for (name, values), colour in zip(losses.items(), (BLUE, ORANGE), strict=False):
            self.loss.plot(values, color=colour, linewidth=1, marker="." if len(values) < 100 else "", label=name)
        for axes in (self.loss, self.fit):
            axes.legend()
            axes.grid(alpha=0.3)
        try:
            self.figure.savefig(self.path, dpi=120)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path} cannot be written: {getattr(error, 'strerror', None) or error}") from None


def parse_table(text: str, name: str, columns: Sequence[str]) -> pd.DataFrame:
    """The cells of some columns of CSV text, stripped of blanks; the index is the line that each row ends on.

    The csv module reads it, because it knows the lines and keeps a row with a comma too many in its place.
    """
    reader = csv.reader(io.StringIO(text), skipinitialspace=True, strict=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise InputError(f"{name} is not a CSV file: {error} in line {reader.line_num}") from None
    if not rows:
        raise InputError(f"{name} is empty: it must have a header and at least {FEWEST_ROWS} rows")
    (_, header), *rows = rows
    while not header[-1]:  # a comma at the end of every line makes no column
        header.pop()
    for column in columns:
        if header.count(column) != 1:
            raise InputError(f"{name} must have one column {column!r}, but its header is {','.join(header)!r:.300}")
    for line, cells in rows:
        if any(cells[len(header) :]):
            raise InputError(f"{name}, line {line} has more values than the header has names: put quotes around commas")
    places = [header.index(column) for column in columns]
    table = [["".join(cells[place : place + 1]) for place in places] for _, cells in rows]
    return pd.DataFrame(table, columns=list(columns), index=[line for line, _ in rows])


def check_rows(rows: int, name: str) -> None:
    if rows < FEWEST_ROWS:
        raise InputError(f"{name} holds {rows} of the at least {FEWEST_ROWS} rows that are needed")


def read_text(path: str) -> str:
    """The text of a CSV file."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeError as error:
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}") from None


def as_numbers(cells: pd.Series, name: str, words: dict[str, float] | None = None) -> Array:
    """The finite numbers in a column of ``parse_table``, or those that its words stand for."""
    rule = " or ".join(words) if words else "a finite number"
    column = cells.str.lower().map(words) if words else pd.to_numeric(cells, errors="coerce")
    numbers = np.asarray(column, float)
    for row in np.flatnonzero(~np.isfinite(numbers))[:1]:
        where = f"{name}, row {row + 1} (line {cells.index[row]})"
        raise InputError(f"{where}: {cells.name!r} must be {rule}, but is {cells.iloc[row]!r:.60}")
    return numbers


# --- The cluster ------------------------------------------------------------------------------------------------------


def here(*values: Any) -> tuple[Any, ...]:
    """What makes numbers of values that are no lazy ones."""
    return values


@contextlib.contextmanager
def cluster(options: argparse.Namespace) -> Iterator[Compute]:
    """What makes numbers of lazy values: a Dask cluster, one started for that or the one at the address given."""
    if not options.dask:
        yield here
        return
    try:
        import dask
        import distributed
        from distributed.core import connect
    except ImportError:
        uv = "uv run --with 'dask[array,distributed]' train_linear.py --dask"
        raise InputError(f"--dask needs Dask: pip install 'tinygrad-lite[dask]', or {uv}") from None

    memory: Any = "auto"
    if options.dask_memory_limit:
        with contextlib.suppress(ValueError):
            memory = dask.utils.parse_bytes(options.dask_memory_limit)
        if memory == "auto" or memory < FEWEST_BYTES:
            least = f"a size such as 2GB, {FEWEST_BYTES // 10**6}MB or more"
            raise InputError(f"--dask-memory-limit must be {least}, not {options.dask_memory_limit!r}")

    def start(**settings: Any) -> Any:  # with Ctrl-C ignored, which the first workers inherit
        ctrl_c = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return distributed.Client(n_workers=dask.system.CPU_COUNT, threads_per_worker=1, **settings)
        finally:
            signal.signal(signal.SIGINT, ctrl_c)

    async def probe() -> None:  # a Client waits without limit for a peer that accepts and keeps silent
        await (await asyncio.wait_for(connect(options.dask), DASK_SECONDS)).close()

    logging.disable(logging.CRITICAL)  # what matters is raised
    with contextlib.ExitStack() as stack:
        stack.callback(logging.disable, logging.NOTSET)
        try:
            if options.dask == "local":
                quiet = {"dashboard_address": ":0", "silence_logs": logging.CRITICAL}
                client = start(memory_limit=memory, preload=IGNORE_CTRL_C, **quiet)
            else:
                asyncio.run(probe())
                client = distributed.Client(options.dask, timeout=DASK_SECONDS)
            stack.enter_context(client).wait_for_workers(1, timeout=DASK_SECONDS)
        except Exception as error:  # of many kinds, from peers that are no Dask scheduler
            advice = "start one with 'dask scheduler' and 'dask worker', or give --dask alone"
            raise InputError(f"no Dask scheduler with workers answers at {options.dask}: {advice}") from error
        try:
            yield dask.compute
        except distributed.KilledWorker as error:
            raise InputError(f"{error} Give the workers more memory, or smaller files") from None
        except distributed.client.FutureCancelledError:
            raise InputError(f"the Dask scheduler at {options.dask} went away: start it and this again") from None


# --- The data ---------------------------------------------------------------------------------------------------------


def read_columns(path: str) -> Array:
    """x and y of a CSV file, shape (2, rows): by pandas or, for a file with quirks or mistakes, cell by cell."""
    text = read_text(path)
    with contextlib.suppress(ValueError, KeyError):
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE)
        if isinstance(table.index, pd.RangeIndex) and not table.columns.str.contains("^[xy][.]|^Unnamed").any():
            numbers = np.array([pd.to_numeric(table[column], errors="coerce") for column in ("x", "y")], float)
            if np.isfinite(numbers).all():
                return numbers
    cells = parse_table(text, path, ["x", "y"])
    return np.array([as_numbers(cells[column], path) for column in cells])


def read_here(paths: Sequence[str]) -> Array:
    return np.concatenate([read_columns(path) for path in progress(paths, len(paths), "file")], axis=1)


def read_on_workers(paths: Sequence[str]) -> Any:
    """The same as two dask.arrays: a large file is a chunk of them, which stays on the worker that read it."""
    import dask
    import dask.array as da
    import distributed

    files = dask.persist(*[dask.delayed(read_columns)(os.path.abspath(path)) for path in paths])
    sizes = dask.persist(*[file.shape[1] for file in files])
    for future in progress(distributed.as_completed(distributed.futures_of(sizes)), len(paths), "file"):
        future.result()  # raises the error of a broken file as soon as it is met
    sizes = dask.compute(*sizes)
    chunks = [da.from_delayed(file, (2, n), float) for file, n in zip(files, sizes, strict=True) if n]
    rows = da.concatenate(chunks or [np.empty((2, 0))], axis=1)
    if rows.shape[1] < SMALL_FILE * len(paths):  # a task for every small file would take longer than its rows
        rows = rows.rechunk({1: CHUNK})
    return dask.persist(*rows)


def load(options: argparse.Namespace, compute: Compute) -> tuple[Any, Any, float, float]:
    """The columns x and y, read or made, here or on the workers, and the units that training scales them by."""
    if not options.data:
        rows = options.rows or 100_000
        if options.dask:
            import dask.array as da

            x = da.arange(rows, dtype=float, chunks=CHUNK)
        else:
            x = np.arange(rows, dtype=float)
        return x, x - 1, float(rows), float(rows)
    if options.rows:
        raise InputError("--data reads the rows that --rows would make: give one of the two")
    # A name that stands for no file is read as it is, which says why that cannot be done.
    found = [[name] if os.path.exists(name) else sorted(glob.glob(name)) or [name] for name in options.data]
    name = ", ".join(options.data)
    x, y = (read_on_workers if options.dask else read_here)([*itertools.chain(*found)])
    check_rows(len(x), name)
    low, high, x_unit, y_unit = compute(x.min(), x.max(), abs(x).max(), abs(y).max())
    if low == high:
        raise InputError(f"{name}: 'x' is {low:g} in every row, which leaves the slope open: it must vary")
    return x, y, x_unit, y_unit or 1.0


def batches(x: Any, y: Any, size: int, rng: np.random.Generator) -> Iterable[tuple[Any, Any]]:
    """All examples in a shuffled order: as numbers for ``size`` 1, else as arrays of shape (size,).

    Large batches are ranges of neighbouring rows, which need not be moved, and only their order is shuffled.
    """
    starts = np.arange(0, len(x), size)
    if size >= LARGE_BATCH:
        rng.shuffle(starts)
    else:
        order = rng.permutation(len(x))
        x, y = x[order], y[order]
    if size == 1:
        return zip(x, y, strict=True)
    return ((x[i : i + size], y[i : i + size]) for i in starts)


# --- The model --------------------------------------------------------------------------------------------------------


def squared_error(w: Tensor, b: Tensor, x: Any, y: Any) -> Tensor:
    """The mean squared error of y = w * x + b: of one example or of an array of them."""
    return ((w * x + b - y) ** 2).mean()


def descend(w: Any, b: Any, x: Any, y: Any, lr: float) -> tuple[Any, Any]:
    """w and b after a step of gradient descent."""
    slope_w, slope_b = grad(squared_error, (0, 1))(w, b, x, y)
    return w - lr * slope_w, b - lr * slope_b


def eager_step(w: Tensor, b: Tensor, compute: Compute) -> Callable:
    """The same as a function of its arguments that works on these Tensors."""
    optimizer = SGD([w, b], lr=0.0)

    def step(w: Tensor, b: Tensor, x: Any, y: Any, lr: float) -> tuple[Tensor, Tensor]:
        optimizer.zero_grad()
        squared_error(w, b, x, y).backward()
        w.grad, b.grad = compute(w.grad, b.grad)
        optimizer.lr = lr
        optimizer.step()
        return w, b

    return step


def train(
    x: Any, y: Any, epochs: int, size: int, lr: float, seed: int, eager: bool = False, compute: Compute = here
) -> Iterator[tuple[Any, ...]]:
    """Yield (epoch, loss, w, b, steps, steps per second) before the first epoch and after each.

    The learning rate falls from lr to lr / epochs, so that noise in the data averages out in the end. After
    Ctrl-C within an epoch it yields what was reached, and then raises the KeyboardInterrupt.
    """
    rng = np.random.default_rng(seed)
    w: Any = Tensor(0.0, requires_grad=True) if eager else np.float64(0)
    b: Any = Tensor(0.0, requires_grad=True) if eager else np.float64(0)
    step: Callable
    if eager:
        step = eager_step(w, b, compute)
    elif size == 1:
        step = jit(descend).lower(w, b, x[0], y[0], lr)  # all examples are alike
    else:
        fast = jit(descend)
        step = lambda *args: compute(*fast(*args))  # noqa: E731
    per_epoch, steps, speed, interrupted = math.ceil(len(x) / size), 0, 0.0, False
    order = itertools.chain.from_iterable(batches(x, y, size, rng) for _ in range(epochs))
    with progress(order, epochs * per_epoch, "step") as bar:
        examples = iter(bar)
        for epoch in range(epochs + 1):
            falling_lr = lr * (1 - (epoch - 1) / max(epochs, 1))
            start, before = time.perf_counter(), steps
            try:
                for x_batch, y_batch in itertools.islice(examples, per_epoch if epoch else 0):
                    w, b = step(w, b, x_batch, y_batch, falling_lr)
                    steps += 1
            except KeyboardInterrupt:
                interrupted = True
            speed = (steps - before) / (time.perf_counter() - start)
            loss = float(*compute(squared_error(w.item(), b.item(), x, y)))
            if not math.isfinite(loss):
                raise InputError(f"the loss overflowed in epoch {epoch}: try an --lr smaller than {lr:g}")
            bar.clear()
            yield epoch, loss, w.item(), b.item(), steps, speed
            if interrupted:
                raise KeyboardInterrupt


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    rows = number(int, f"an integer from {FEWEST_ROWS} to 1000000000", FEWEST_ROWS, 10**9)
    parser = Parser(description="Fit y = w * x + b by stochastic gradient descent, one example at a time.")
    add = parser.add_argument
    add("--rows", type=rows, help="rows to make, y = x - 1 (default 100000)")
    add("--data", metavar="FILE.csv", nargs="+", help="train on files with the columns x,y instead")
    add("--save-data", metavar="FILE.csv", help="write the data as x,y and go on")
    add("--epochs", type=count_or_none, default=50, help="passes over the data (default 50)")
    add("--batch-size", type=count, help="examples per step (default 1, with --dask a 16th of the rows)")
    add("--lr", type=rate, help=f"first learning rate (default 0.1, in steps of {LARGE_BATCH} and more 0.4)")
    add("--seed", type=count_or_none, default=0, help="of the shuffled order (default 0)")
    add("--eager", action="store_true", help="train with backward() instead of code from jit")
    add("--dask", nargs="?", const="local", metavar="ADDRESS", help="train on Dask: a new cluster, or tcp://host:8786")
    add("--dask-memory-limit", metavar="SIZE", help="of each new Dask worker, such as 2GB")
    add("--json", action="store_true", help="print one JSON object instead of lines")
    add("--plot", metavar="FILE.png", help="draw the loss and the line")
    options = parser.parse_args(argv)
    if options.dask == "":
        parser.error("--dask '' is no address: give one such as tcp://host:8786, or none")
    if options.dask and options.save_data:
        parser.error("--save-data writes rows of this machine: leave out --dask")
    if options.dask_memory_limit and options.dask != "local":
        parser.error("--dask-memory-limit is for the workers that --dask without an address starts")
    if options.dask and options.batch_size and options.batch_size < LARGE_BATCH:
        parser.error(f"--dask takes ranges of rows: --batch-size must be {LARGE_BATCH} or more")
    return options


def job(argv: Sequence[str] | None) -> int:
    options = parse_options(argv)
    with cluster(options) as compute:
        return fit(options, compute)


def fit(options: argparse.Namespace, compute: Compute) -> int:
    plot = Plot(options.plot) if options.plot else None
    x, y, x_unit, y_unit = load(options, compute)
    if options.save_data:
        try:
            pd.DataFrame({"x": x, "y": y}).to_csv(options.save_data, index=False)
        except OSError as error:
            raise InputError(f"{options.save_data} cannot be written: {error.strerror or error}") from None

    start, interrupted = time.perf_counter(), False
    size = options.batch_size or (max(LARGE_BATCH, math.ceil(len(x) / 16)) if options.dask else 1)
    lr = options.lr or (0.4 if size >= LARGE_BATCH else 0.1)
    states = train(x / x_unit, y / y_unit, options.epochs, size, lr, options.seed, options.eager, compute)
    state = next(states)
    losses = [state[1]]
    try:
        for state in states:
            epoch, loss, w, b, _, speed = state
            losses.append(loss)
            if not options.json:
                print(f"epoch {epoch:3d}  loss {loss:.3e}  w {w:.6f}  b {b:.8f}  {speed:,.0f} steps/s")
    except KeyboardInterrupt:
        interrupted = True

    epoch, loss, w, b, steps, _ = state
    slope, intercept = w * y_unit / x_unit, b * y_unit
    seconds, engine = time.perf_counter() - start, "eager" if options.eager else "dask" if options.dask else "jit"
    line = f"y = {slope:#.7g} x {'-' if intercept < 0 else '+'} {abs(intercept):#.7g}"
    if options.json:
        report = {"slope": slope, "intercept": intercept, "loss": loss, "rows": len(x), "epochs": epoch, "steps": steps}
        print(json.dumps(report | {"engine": engine, "seconds": seconds, "interrupted": interrupted}))
    else:
        if interrupted:
            print(f"interrupted in epoch {epoch}: this is the line so far")
        print(f"{steps:,} steps in {seconds:.2f} s, engine {engine}\n{line}")
    if plot:
        every = math.ceil(len(x) / 1_000)
        some_x, some_y = compute(x[::every], y[::every])
        ends = np.array([some_x.min(), some_x.max()])
        plot.fit.plot(some_x, some_y, ".", color=BLUE, label=f"{len(some_x):,} of {len(x):,} rows")
        plot.fit.plot(ends, slope * ends + intercept, color=ORANGE, label=line)
        plot.fit.set(xlabel="x", ylabel="y", title="Data and fitted line")
        plot.save({"all rows": losses})
    return 130 if interrupted else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Fit and report; returns the exit code."""
    return run(job, argv)


if __name__ == "__main__":
    sys.exit(main())
