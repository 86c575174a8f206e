# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy>=2.0", "pandas>=2.2.2", "kagglehub>=1.0", "tqdm>=4.67"]
# ///
"""The scalar job: fit y = w * x + b by stochastic gradient descent, one example at a time.

Without --data it makes its own rows: x = 0, 1, 2, ... and y = x - 1. With --batch-size above 1 the same model runs on
arrays instead of numbers; with --dask that is on a cluster, where the rows are made or read, and stay.

    python train_linear.py
    python train_linear.py --rows 1000 --save-data line.csv
    python train_linear.py --data line.csv --batch-size 64 --json
    python train_linear.py --dask --data part-*.csv --batch-size 1000000

The last lines are the line that was found and, as a yardstick, the least-squares line in closed form.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import sys

import numpy as np
import pandas as pd
from tqdm import tqdm

from tinygrad_lite import SGD, Tensor, grad, jit

KINDS = {b"\x1f\x8b": {"compression": "gzip"}, b"\xff\xfe": {"encoding": "utf-16"}, b"\xfe\xff": {"encoding": "utf-16"}}
LINE = "{:14} y = {slope:#.7g} x {intercept:=+#10.7g}  (root mean squared error {rmse:.4g})"


# --- Data -------------------------------------------------------------------------------------------------------------


def read(path):
    """x and y of a CSV file, shape (2, rows): of text in UTF-8 or UTF-16, or compressed by gzip."""
    try:
        with open(path, "rb") as file:
            kind: dict = KINDS.get(file.peek(2)[:2], {})
            cells = pd.read_csv(file, header=None, dtype=str, keep_default_na=False, skipinitialspace=True, **kind)
        cells = cells.set_axis(cells.iloc[0].str.strip(), axis=1).loc[1:, ["x", "y"]]
        x, y = cells.apply(pd.to_numeric, errors="coerce").to_numpy(float).T
    except Exception as error:  # of many kinds
        raise ValueError(f"{path} cannot be read as a CSV file with columns x and y: {error}") from None
    for row, i in np.argwhere(~np.isfinite(np.c_[x, y]))[:1]:
        raise ValueError(f"{path}, row {row + 1}: {'xy'[i]} must be a finite number, not {cells.iat[row, i]!r:.60}")
    return np.array([x, y])


def load(options):
    """x and y, shape (2, rows), read or made, here or on Dask's workers; and what makes numbers of lazy ones."""
    paths = [os.path.abspath(path) for path in options.data or ()]
    if options.dask is None:
        tables = [*map(read, paths)] or [np.arange(options.rows) - [[0.0], [1.0]]]
        return np.concatenate(tables, axis=1), lambda *values: values
    import dask.array
    import distributed

    dask.config.set({"optimization.fuse.active": False})  # or the steps call different tasks by one name
    if options.dask != "threads":
        logging.disable(logging.CRITICAL)  # what matters is raised
        asyncio.run(asyncio.wait_for(distributed.core.connect(options.dask), timeout=4))  # a Client never gives up
        distributed.Client(options.dask, timeout=4).wait_for_workers(1, timeout=4)
    tables = [dask.array.from_delayed(t, (2, np.nan), float) for t in dask.persist(*map(dask.delayed(read), paths))]
    made = dask.array.arange(options.rows, chunks=2_000_000) - [[0.0], [1.0]]
    return dask.array.concatenate(tables, axis=1).compute_chunk_sizes() if paths else made, dask.compute


# --- Model ------------------------------------------------------------------------------------------------------------


def squared_error(w, b, x, y):
    """The squared error of y = w * x + b: of one example, or the sum of those of an array."""
    return ((w * x + b - y) ** 2).sum()


def descend(w, b, x, y, lr):
    """w and b after a step of gradient descent."""
    slope_w, slope_b = grad(squared_error, (0, 1))(w, b, x, y)
    return w - lr * slope_w, b - lr * slope_b


def descend_eagerly(w, b, x, y, lr):
    """The same as one writes it first."""
    w, b = Tensor(w, requires_grad=True), Tensor(b, requires_grad=True)
    squared_error(w, b, x, y).backward()
    SGD([w, b], lr).step()
    return w.data, b.data


# --- Loop and report --------------------------------------------------------------------------------------------------


@np.errstate(all="ignore")  # an overflow shows in the loss
def fit(options):
    """Train and report; returns the exit code."""
    if options.plot is not None:
        from matplotlib import pyplot  # before the work, lest it be done for nothing
    data, compute = load(options)
    if (rows := data.shape[1]) < 5:
        raise ValueError(f"{rows} rows are too few: there must be 5")
    if options.save_data is not None:
        pd.DataFrame(data.T, columns=["x", "y"]).to_csv(options.save_data, index=False)
    (mean,) = compute(data.mean(axis=1))
    offset = data - mean[:, None]
    unit, varies = compute(np.sqrt((offset**2).mean(axis=1)), (offset != 0).any(axis=1))
    if not 1e-12 * abs(mean[0]) + 1e-150 < unit[0] < np.inf or not 1e-150 * varies[1] <= unit[1] < np.inf:
        raise ValueError(f"x is {mean[0]:g} ± {unit[0]:g}, y {mean[1]:g} ± {unit[1]:g}: x must vary, none overflow")
    x, y = offset / np.where(unit > 0, unit, 1)[:, None]

    def line(w, b):
        """The line in the units of the data, and its root mean squared error."""
        slope, (total,) = w * unit[1] / unit[0], compute(squared_error(w, b, x, y))
        intercept, rmse = mean[1] + b * unit[1] - slope * mean[0], np.sqrt(total / rows) * unit[1]
        return {"slope": float(slope), "intercept": float(intercept), "rmse": float(rmse)}

    # As x is scaled, the Hessians of all examples, 2 (x, 1) (x, 1)^T, add up to 2 * rows * the unit matrix. A batch has
    # some of them, so that a rate up to 1 / rows overshoots for no batch, whatever its size and the data.
    lr, n = options.lr or 0.75 / rows, options.batch_size or (max(1000, rows // 16) if options.dask else 1)
    w = b = dw = db = zero = np.float64(0)
    starts, rng, is_lazy = range(0, rows, n), np.random.default_rng(options.seed), options.dask
    (best,), show = compute((x * y).mean()), (lambda text: None) if options.json else print
    lines, yardstick = [line(w, b)], line(best, 0.0)
    # Examples are all alike, so that the code for one needs no look at the next.
    step = descend_eagerly if options.eager else jit(descend) if n > 1 else jit(descend).lower(w, b, zero, zero, lr)
    with contextlib.suppress(KeyboardInterrupt):
        # The rate falls to 0, so that noise averages out.
        for epoch, rate in enumerate(lr * (1 - np.linspace(0, 1, options.epochs, endpoint=False) ** 2), 1):
            # What the line so far leaves is fitted: beside a w of 1, changes of 1e-17 would be lost.
            r, order = y - (w * x + b), rng.permutation(starts)
            batches = zip(x[order], r[order], strict=True) if n == 1 else ((x[i : i + n], r[i : i + n]) for i in order)
            for x_batch, y_batch in tqdm(batches, f"epoch {epoch}", len(starts), delay=1, leave=False, disable=None):
                dw, db = step(dw, db, x_batch, y_batch, rate)
                if is_lazy:
                    dw, db = compute(dw, db)
            w, b, dw, db = w + dw, b + db, zero, zero
            lines.append(line(w, b))
            if not np.isfinite(lines[-1]["rmse"]):
                raise ValueError(f"the loss overflowed in epoch {epoch}: choose an --lr below {lr:g}")
            show(LINE.format(f"epoch {epoch}", **lines[-1]))

    report = {**lines[-1], "least_squares": yardstick, "rows": rows, "epochs": len(lines) - 1}
    show(LINE.format("fitted", **report))
    show(LINE.format("least squares", **yardstick))
    if options.json:
        print(json.dumps(report))
    if np.hypot(w - best, b) > 0.01:
        print("warning: this is not the least-squares line yet: try more --epochs, or no --lr", file=sys.stderr)
    if options.plot is not None:
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
        pd.DataFrame(lines).plot(y="rmse", ax=left, logy=True, xlabel="epoch", ylabel="root mean squared error")
        ((x, y),) = compute(data[:, :: -(-rows // 1000)])
        right.plot(x, y, ".", x, report["slope"] * x + report["intercept"])
        right.set(xlabel="x", ylabel="y", title="Data and fitted line")
        figure.savefig(options.plot, dpi=120)
    return 0 if len(lines) > options.epochs else 130


# --- Command line -----------------------------------------------------------------------------------------------------


def main(argv=None):
    """Read the options, fit and report; returns the exit code."""
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__.splitlines()[0])
    add, add_source = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add_source("--rows", type=int, default=100_000, help="rows to make, y = x - 1 (default 100000)")
    add_source("--data", metavar="FILE", nargs="+", help="train on CSV files with columns x and y instead")
    add("--save-data", metavar="FILE", help="write the rows as a CSV file and go on")
    add("--epochs", type=int, default=50, help="passes over the rows (default 50)")
    add("--batch-size", type=int, default=0, help="rows in a step (default 1, with --dask a 16th, but at least 1000)")
    add("--lr", type=float, default=0, help="the first learning rate, for summed squared errors (default 0.75 / rows)")
    add("--seed", type=int, default=0, help="of the shuffled order (default 0)")
    add("--eager", action="store_true", help="train with backward() instead of code from jit")
    add("--dask", nargs="?", const="threads", metavar="ADDRESS", help="train on Dask: its threads, or tcp://host:8786")
    add("--plot", metavar="FILE", help="draw the loss and the line, as PNG, SVG or PDF")
    add("--json", action="store_true", help="print one JSON object instead of lines")
    options = parser.parse_args(argv)
    if not sys.stdout or options.rows > 1e9 or min(options.epochs, options.batch_size, options.lr, options.seed) < 0:
        parser.error("numbers must not be negative, --rows at most 1e9, and standard output open")
    try:
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        return fit(options)
    except (Exception, KeyboardInterrupt) as error:
        where = f"Dask at {options.dask}: " if options.dask else ""
        print(f"error: {where}{' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 2


if __name__ == "__main__":
    os._exit(main())  # without one more flush of standard output, which may have failed
