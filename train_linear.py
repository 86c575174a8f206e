# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy>=2.0", "pandas>=2.2", "kagglehub>=0.3.6"]
# ///
"""The scalar job: fit y = w * x + b by stochastic gradient descent, one example at a time.

Without --data it makes its own: x = 0, 1, 2, ... and y = x - 1. With --batch-size above 1 the same model runs on
arrays instead of numbers.

    python train_linear.py
    python train_linear.py --rows 1000 --save-data line.csv
    python train_linear.py --data line.csv --batch-size 64 --json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from tinygrad_lite import SGD, Tensor, no_grad

FEWEST_ROWS = 5


# --- The command line -------------------------------------------------------------------------------------------------
# What the user typed or gave and cannot be used is one sentence on standard error and exit code 2, in both scripts.


class InputError(Exception):
    """What the user can mend, said in one sentence."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are InputErrors."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def number(kind: Callable[[str], float], low: float, high: float = math.inf, above: bool = False) -> Callable:
    """A type for argparse: a finite number from ``low`` (or ``above`` it) to below ``high``."""

    def convert(text: str) -> float:
        value = kind(text)
        if not (low < value if above else low <= value) or not value < high:
            limit = "" if high == math.inf else f" and below {high}"
            raise argparse.ArgumentTypeError(f"{text} must be {'above' if above else 'at least'} {low}{limit}, and finite")
        return value

    convert.__name__ = "whole number" if kind is int else "number"  # as argparse calls what is none
    return convert


def run(job: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None) -> int:
    """The exit code of a job, with what went wrong said on standard error."""
    try:
        code = job(argv)
        sys.stdout.flush()
        return code
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted before the training began", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the lines, head say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


# --- The data ---------------------------------------------------------------------------------------------------------


def read_table(path: str, columns: Sequence[str]) -> pd.DataFrame:
    """The named columns of a CSV file as text, without the blanks around names and values."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give the path of a CSV file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except pd.errors.EmptyDataError:
        raise InputError(f"{path} is empty: it must begin with a line of column names, {','.join(columns)}") from None
    except (pd.errors.ParserError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path} is not a CSV file: {' '.join(str(error).split())}") from None
    table.columns = table.columns.str.strip()
    for column in columns:
        if list(table.columns).count(column) != 1:
            raise InputError(f"{path} needs one column {column!r}, but has the columns {', '.join(table.columns)}")
    if len(table) < FEWEST_ROWS:
        raise InputError(f"{path} holds {len(table)} rows of data: at least {FEWEST_ROWS} are needed")
    return table[list(columns)].apply(lambda column: column.str.strip())


def as_numbers(path: str, column: pd.Series) -> np.ndarray:
    """A column of text as finite floats; row 1 is the first below the column names."""
    values = pd.to_numeric(column, errors="coerce").to_numpy(float)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InputError(f"{path}, row {row + 1}, column {column.name!r}: {column.iloc[row]!r} is not a finite number")
    return values


def largest(path: str, name: str, values: np.ndarray) -> float:
    """The largest absolute value, by which a column is scaled; 1 for a column of zeros."""
    if name == "x" and values.min() == values.max():
        raise InputError(f"{path}: column 'x' is {values[0]:g} in every row, which leaves the slope open: it must vary")
    return float(np.abs(values).max()) or 1.0


def batches(x: np.ndarray, y: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[tuple[Any, Any]]:
    """All examples in a shuffled order: as numbers for ``size`` 1, else as arrays of shape (size,)."""
    order = rng.permutation(len(x))
    x, y = x[order], y[order]
    if size == 1:
        return zip(x, y, strict=True)
    return ((x[i : i + size], y[i : i + size]) for i in range(0, len(x), size))


# --- The model --------------------------------------------------------------------------------------------------------


def squared_error(w: Tensor, b: Tensor, x: Any, y: Any) -> Tensor:
    """The mean squared error of y = w * x + b: of one example or of an array of them."""
    return ((w * x + b - y) ** 2).mean()


def train(x: np.ndarray, y: np.ndarray, epochs: int, size: int, lr: float, seed: int) -> Iterator[tuple[Any, ...]]:
    """Yield (epoch, loss, w, b, steps, seconds) before the first epoch and after each; seconds are the epoch's own.

    The learning rate falls from lr to lr / epochs, so that noise in the data averages out in the end.
    """
    rng = np.random.default_rng(seed)
    w, b = Tensor(0.0, requires_grad=True), Tensor(0.0, requires_grad=True)
    optimizer = SGD([w, b], lr=lr)
    steps, seconds = 0, 0.0
    for epoch in range(epochs + 1):
        if epoch:
            optimizer.lr = lr * (1 - (epoch - 1) / epochs)
            start = time.perf_counter()
            for x_batch, y_batch in batches(x, y, size, rng):
                optimizer.zero_grad()
                squared_error(w, b, x_batch, y_batch).backward()
                optimizer.step()
                steps += 1
            seconds = time.perf_counter() - start
        with no_grad():
            loss = squared_error(w, b, x, y).item()
        if not math.isfinite(loss):
            raise InputError(f"the loss overflowed in epoch {epoch}: try an --lr smaller than {lr:g}")
        yield epoch, loss, w.item(), b.item(), steps, seconds


def job(argv: Sequence[str] | None) -> int:
    parser = Parser(description="Fit y = w * x + b by stochastic gradient descent, one example at a time.")
    parser.add_argument("--rows", type=number(int, 2), help="rows to make: x = 0, 1, ..., y = x - 1 (default 100000)")
    parser.add_argument("--data", metavar="FILE.csv", help="train on a CSV file with the columns x,y instead")
    parser.add_argument("--save-data", metavar="FILE.csv", help="write the data as x,y and go on")
    parser.add_argument("--epochs", type=number(int, 0), default=50, help="passes over the data (default 50)")
    parser.add_argument("--batch-size", type=number(int, 1), default=1, help="examples per step (default 1)")
    parser.add_argument("--lr", type=number(float, 0, above=True), default=0.1, help="first learning rate (default 0.1)")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of the shuffled order (default 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    options = parser.parse_args(argv)

    if options.data and options.rows:
        raise InputError("--data reads the rows that --rows would make: give one of the two")
    if options.data:
        table = read_table(options.data, ["x", "y"])
        x, y = (as_numbers(options.data, table[name]) for name in ("x", "y"))
        x_unit, y_unit = largest(options.data, "x", x), largest(options.data, "y", y)
    else:
        x = np.arange(options.rows or 100_000, dtype=float)
        y = x - 1
        x_unit = y_unit = float(len(x))
    if options.save_data:
        try:
            pd.DataFrame({"x": x, "y": y}).to_csv(options.save_data, index=False)
        except OSError as error:
            raise InputError(f"{options.save_data} cannot be written: {error.strerror or error}") from None

    start, interrupted = time.perf_counter(), False
    epoch = loss = w = b = steps = None
    try:
        with np.errstate(all="ignore"):  # an overflow is told by the loss
            for epoch, loss, w, b, steps, seconds in train(
                x / x_unit, y / y_unit, options.epochs, options.batch_size, options.lr, options.seed
            ):
                if epoch and not options.json:
                    speed = (steps // epoch) / seconds
                    print(f"epoch {epoch:3d}  loss {loss:.3e}  w {w:.6f}  b {b:.8f}  {speed:,.0f} steps/s", flush=True)
    except KeyboardInterrupt:
        interrupted = True
    slope, intercept = w * y_unit / x_unit, b * y_unit
    report = {
        "slope": slope,
        "intercept": intercept,
        "loss": loss,
        "rows": len(x),
        "epochs": epoch,
        "steps": steps,
        "seconds": time.perf_counter() - start,
        "interrupted": interrupted,
    }
    if options.json:
        print(json.dumps(report))
    else:
        if interrupted:
            print(f"interrupted: the result after epoch {epoch}")
        print(f"y = {slope:#.7g} x {'-' if intercept < 0 else '+'} {abs(intercept):#.7g}")
    return 130 if interrupted else 0


def main(argv: Sequence[str] | None = None) -> int:
    return run(job, argv)


if __name__ == "__main__":
    sys.exit(main())
