# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy>=2.0", "pandas>=2.2.2", "kagglehub>=1.0", "tqdm>=4.66"]
# ///
"""Predict income from gender, age and height: the tensor job.

It loads the Kaggle dataset ``muhammadtalharasool/simple-gender-classification`` (or a CSV file with its columns, or a
generated sample), scales every column to [0, 1], trains a linear model, or with ``--hidden N`` one hidden layer of N
tanh units, and sets the errors beside two yardsticks: the training mean and the closed-form least-squares fit.

    python train_gender.py                             # Kaggle, or the sample where Kaggle cannot be reached
    python train_gender.py --csv gender.csv --hidden 16

The file in reading order: the table, where it comes from, the model, the report, the command line.
"""

import argparse
import contextlib
import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tinygrad_lite import SGD, Tensor, grad, jit, no_grad
from train_linear import (
    BLUE,
    ORANGE,
    Array,
    InputError,
    Parser,
    Plot,
    as_numbers,
    check_rows,
    count,
    count_or_none,
    number,
    parse_table,
    progress,
    rate,
    read_text,
    run,
)

Parts = dict[str, tuple[Array, Array]]  # features and target, scaled, of the parts "train" and "test"
Layers = list[tuple[Tensor, Tensor]]
State = tuple[int, dict[str, float], dict[str, Array]]  # epochs done, and each part's loss and predictions

FEATURES, TARGET = ["Gender", "Age", "Height (cm)"], "Income (USD)"
COLUMNS = [*FEATURES, TARGET]
GENDERS = {"male": 1.0, "female": 0.0}
DATASET = "muhammadtalharasool/simple-gender-classification"
KAGGLE_SECONDS = 15.0  # for all attempts together


# --- The table --------------------------------------------------------------------------------------------------------


def parse_people(text: str, name: str) -> pd.DataFrame:
    """The features (male 1, female 0) and the target of every row of CSV text; errors call the text ``name``."""
    cells = parse_table(text, name, COLUMNS)
    check_rows(len(cells), name)
    words = {"Gender": GENDERS}
    return pd.DataFrame({column: as_numbers(cells[column], name, words.get(column)) for column in COLUMNS})


def split_table(table: pd.DataFrame, fraction: float, rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    """The rows in random order, ``fraction`` of them as the part ``test`` and the rest as ``train``."""
    order, size = rng.permutation(len(table)), round(fraction * len(table))
    if not 0 < size < len(table):
        advice = "a smaller" if size else "a larger"
        raise InputError(f"--test-fraction {fraction:g} of {len(table)} rows leaves a part empty: choose {advice} one")
    return {"train": table.iloc[order[size:]], "test": table.iloc[order[:size]]}


def scale_parts(parts: dict[str, pd.DataFrame]) -> Parts:
    """Features and target of each part, scaled to [0, 1] by the minimum and maximum of the training part alone."""
    low, high = parts["train"].min(), parts["train"].max()
    scaled = {part: (rows - low) / (high - low) for part, rows in parts.items()}
    for column in low.index[~(pd.concat(scaled.values()).abs() < 1e100).all()]:
        raise InputError(
            f"column {column!r} cannot be scaled, as it runs from {low[column]:g} to {high[column]:g} in the "
            "training part: use rows that differ there, or another --seed"
        )
    return {part: (rows[FEATURES].to_numpy(), rows[[TARGET]].to_numpy()) for part, rows in scaled.items()}


# --- Where it comes from ----------------------------------------------------------------------------------------------
# kagglehub waits for a silent server without limit, and talks on standard output. So it runs in a process of its own,
# which can be stopped and silenced.

ASK_KAGGLE = """
import contextlib, faulthandler, json, sys
faulthandler.dump_traceback_later(float(sys.argv[2]), exit=True)  # the end of this process if its parent was killed
with contextlib.redirect_stdout(sys.stderr):
    try:
        import kagglehub
        answer = {"path": kagglehub.dataset_download(sys.argv[1], path="gender.csv")}
    except BaseException as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        while error.__cause__ or error.__context__:
            error = error.__cause__ or error.__context__
        answer = {"reason": f"{type(error).__name__}: {error}", "refused": status in (401, 403, 404)}
print(json.dumps(answer))
"""


def ask_kaggle(handle: str, seconds: float) -> dict[str, Any]:
    """What kagglehub gives within ``seconds``: the ``path`` of gender.csv, or the ``reason`` why there is none."""
    command, ticks = [sys.executable, "-P", "-c", ASK_KAGGLE, handle, str(seconds)], math.ceil(seconds)
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            try:
                for _ in progress(range(ticks), ticks, "second", "asking Kaggle, at most"):
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        answer: dict[str, Any] = json.loads(child.communicate(timeout=seconds / ticks)[0])
                        return answer
            finally:
                child.kill()
    except (OSError, ValueError) as error:
        return {"reason": f"kagglehub could not run: {error}"}
    return {"reason": f"no answer within {seconds:.2g} s"}


def find_on_kaggle() -> tuple[str, str]:
    """The path of gender.csv and the name of its source.

    It is the latest version or, unless Kaggle itself refused that one, version 1, which kagglehub serves from its cache
    without a network.
    """
    start, note = time.monotonic(), ""
    answer = ask_kaggle(DATASET, KAGGLE_SECONDS * 2 / 3)
    reason = " ".join(answer.get("reason", "").split())[:160]
    if reason and not answer.get("refused"):
        answer = ask_kaggle(f"{DATASET}/versions/1", KAGGLE_SECONDS - (time.monotonic() - start))
        note = f"; Kaggle did not give the latest: {reason}"
    if "path" not in answer:
        raise InputError(f"no data from Kaggle ({reason})")
    path = Path(answer["path"])
    version = f", version {path.parent.name}" if path.parent.parent.name == "versions" else ""
    return str(path), f"kaggle ({DATASET}{version}{note})"


def sample_csv() -> str:
    """Generated rows, as CSV text with the columns and the quirks of the real file."""
    rng, size = np.random.default_rng(131), 131
    male, age = rng.random(size) < 0.5, rng.integers(20, 61, size)
    height = rng.normal(np.where(male, 178, 165), 6).round().astype(int)
    income = rng.normal(1_500 * age + 5_000 * male + 20_000, 20_000).clip(15_000).round(-3).astype(int)
    income[rng.choice(size, 3, replace=False)] = 500_000
    columns = {
        " Gender": np.where(rng.random(size) < 0.5, " ", "") + np.where(male, "male", "female"),
        " Age": age,
        " Height (cm)": height,
        " Weight (kg)": rng.normal(0.9 * height - 85, 6).round().astype(int),
        " Occupation": rng.choice([" Baker", " Librarian", " Plumber", " Surveyor"], size),
        " Education Level": rng.choice([" Secondary School", " Bachelor's Degree", " Master's Degree"], size),
        " Marital Status": rng.choice([" Single", " Married", " Widowed"], size),
        " Income (USD)": income,
        " Favorite Color": rng.choice([" Blue", " Green", " Red"], size),
        "": "",
    }
    return pd.DataFrame(columns).to_csv(index=False)


def load_table(source: str, path: str | None) -> tuple[str, pd.DataFrame]:
    """The name of the source that was used, and its table."""
    name = str(path)
    if path is None and source != "sample":
        try:
            path, name = find_on_kaggle()
        except InputError as error:
            if source == "kaggle":
                raise InputError(f"{error}: give --csv FILE or --source sample") from None
            print(f"warning: {error}: using the generated sample", file=sys.stderr)
    if path is not None:
        return name, parse_people(read_text(path), str(path))
    table = parse_people(sample_csv(), "the sample")
    return f"sample ({len(table)} generated rows, not real data)", table


# --- The model --------------------------------------------------------------------------------------------------------
# With or without a hidden layer: one list of layers, one function that predicts, one loop that trains. The gradients
# come from NumPy code that jit generates of the model, or (--eager) from backward().


def make_layers(sizes: Sequence[int], rng: np.random.Generator) -> Layers:
    """A weight and a bias between each two sizes: weights random, so that units differ, biases 0."""
    return [
        (Tensor(rng.normal(0, n**-0.5, (n, m)), requires_grad=True), Tensor(np.zeros(m), requires_grad=True))
        for n, m in itertools.pairwise(sizes)
    ]


def predict(layers: Layers, x: Any) -> Tensor:
    """The scaled incomes, (rows, 1), for scaled features, (rows, 3)."""
    weight, bias = layers[0]
    units = x @ weight + bias
    for weight, bias in layers[1:]:
        units = units.tanh() @ weight + bias
    return units


def squared_error(layers: Layers, x: Array, y: Array) -> Tensor:
    return ((predict(layers, x) - y) ** 2).mean()


def train(layers: Layers, parts: Parts, args: argparse.Namespace, rng: np.random.Generator) -> Iterator[State]:
    """Yields the state before the first epoch and after each one.

    An epoch is a step on each of so many batches: of one size, give or take a row, so that all rows weigh the same. The
    learning rate falls to 0 along half a cosine. So the linear model settles on the least-squares fit, where with a
    constant rate it would wander around it.
    """
    parameters = [*itertools.chain(*layers)]
    optimizer = SGD(parameters, lr=args.lr, momentum=args.momentum)
    slopes = jit(lambda x, y: grad(squared_error)(layers, x, y))
    x, y = parts["train"]
    for epoch in range(args.epochs + 1):
        optimizer.lr = args.lr * (1 + math.cos(math.pi * (epoch - 1) / max(args.epochs, 1))) / 2
        batches = np.array_split(rng.permutation(len(x)), math.ceil(len(x) / args.batch_size)) if epoch else []
        for rows in batches:
            if args.eager:
                optimizer.zero_grad()
                squared_error(layers, x[rows], y[rows]).backward()
            else:
                for parameter, gradient in zip(parameters, itertools.chain(*slopes(x[rows], y[rows])), strict=True):
                    parameter.grad = gradient
            optimizer.step()
        with no_grad():
            predicted = {part: predict(layers, x).data for part, (x, _) in parts.items()}
        losses = {part: float(np.square(predicted[part] - y).mean()) for part, (_, y) in parts.items()}
        if not all(loss < 1e100 for loss in losses.values()):  # nor is nan
            raise InputError(f"the loss overflowed in epoch {epoch}: choose an --lr below {args.lr:g}")
        yield epoch, losses, predicted


def yardsticks(parts: Parts) -> dict[str, dict[str, Array]]:
    """What the mean of the training part and the closed-form least-squares fit to it predict for each part."""
    designs = {part: np.c_[x, np.ones(len(x))] for part, (x, _) in parts.items()}
    y = parts["train"][1]
    solution = np.linalg.lstsq(designs["train"], y)[0]
    return {
        "mean": {part: np.full((len(design), 1), y.mean()) for part, design in designs.items()},
        "least_squares": {part: design @ solution for part, design in designs.items()},
    }


# --- The report -------------------------------------------------------------------------------------------------------


def measure(predicted: Array, y: Array, dollars: float) -> dict[str, float | None]:
    """The errors of predictions, ``dollars`` being the scaled unit; no R2 where all of y is one number."""
    error, spread = predicted - y, np.square(y - y.mean()).sum()
    r2 = float(1 - np.square(error).sum() / spread) if spread > 1e-20 else None
    return {"mse": float(np.square(error).mean()), "mae_usd": float(np.abs(error).mean() * dollars), "r2": r2}


def print_report(report: dict[str, Any], test: pd.DataFrame) -> None:
    """The report as a table, then five test rows with their true and predicted incomes."""
    if report["interrupted"]:
        print(f"interrupted in epoch {report['epochs'] + 1}: this is the report so far")
    epochs = f"{report['epochs']} epoch{'s' * (report['epochs'] != 1)}"
    print(f"\n{epochs} in {report['seconds']:.2f} s, engine {report['engine']}\n")
    kinds = itertools.product(("train", "test"), ("model", "mean", "least_squares"))
    errors = pd.DataFrame({(part, name): report[name][part] for part, name in kinds}, dtype=float).T
    errors.columns = ["MSE (scaled)", "MAE", "R2"]

    def dollars(amount: float) -> str:
        return f"{'-' if amount < 0 else ''}${abs(amount):,.0f}"

    print(errors.to_string(formatters=["{:.6g}".format, dollars, "{:.4g}".format], na_rep="-") + "\n")
    show = {"Gender": lambda male: "male" if male else "female", TARGET: dollars, "Predicted": dollars}
    print("Some rows of the test part:")
    print(test.head().to_string(formatters=show, float_format="{:g}".format, index=False))


def job(argv: Sequence[str] | None) -> int:
    args = parse_options(argv)
    plot = Plot(args.plot) if args.plot else None
    source, table = load_table(args.source, args.csv)
    rng = np.random.default_rng(args.seed)
    rows = split_table(table, args.test_fraction, rng)
    parts = scale_parts(rows)
    report: dict[str, Any] = {"source": source} | {f"rows_{part}": len(rows[part]) for part in ("train", "test")}
    report["engine"] = "eager" if args.eager else "jit"
    if not args.json:
        print(f"source: {source}\nrows: {len(rows['train'])} for training, {len(rows['test'])} for testing")

    start, interrupted = time.perf_counter(), False
    layers = make_layers([len(FEATURES), args.hidden, 1] if args.hidden else [len(FEATURES), 1], rng)
    states = train(layers, parts, args, rng)
    state = first = next(states)
    curves: dict[str, list[float]] = {"training part": [], "test part": []}
    try:
        bar = progress(itertools.chain([first], states), args.epochs + 1, "epoch")
        for state in bar:
            epoch, losses, _ = state
            for curve, loss in zip(curves.values(), losses.values(), strict=True):
                curve.append(loss)
            if not args.json and (epoch % max(1, args.epochs // 10) == 0 or epoch == args.epochs):
                bar.clear()
                print("epoch {:5}: training loss {train:.6g}, test loss {test:.6g}".format(epoch, **losses))
    except KeyboardInterrupt:
        interrupted = True

    epoch, _, predicted = state
    report |= {"epochs": epoch, "interrupted": interrupted, "seconds": time.perf_counter() - start}
    low, high = rows["train"][TARGET].agg(["min", "max"])
    for name, guesses in {"model": predicted, **yardsticks(parts)}.items():
        report[name] = {part: measure(guesses[part], y, high - low) for part, (_, y) in parts.items()}
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        print_report(report, rows["test"].assign(Predicted=low + (high - low) * predicted["test"]))
    if plot:
        for (part, (_, y)), name, style in zip(parts.items(), curves, ((BLUE, "o"), (ORANGE, "x")), strict=True):
            truth, guess = ((low + (high - low) * scaled.ravel()) / 1000 for scaled in (y, predicted[part]))
            plot.fit.scatter(truth, guess, color=style[0], marker=style[1], alpha=0.8, label=name)
        plot.fit.axline((0, 0), slope=1, color="grey", zorder=0, label="predicted = true")
        plot.fit.set(xlabel="true income (1,000 USD)", ylabel="predicted income (1,000 USD)", title="Income")
        plot.save(curves)
    return 130 if interrupted else 0


# --- The command line -------------------------------------------------------------------------------------------------


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, each of them valid."""
    parser = Parser(description="Predict income from gender, age and height.", allow_abbrev=False)
    add, add_source = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    meaning = "auto (the default): kaggle, where that fails sample"
    add_source("--source", choices=["auto", "kaggle", "sample"], default="auto", help=meaning)
    add_source("--csv", metavar="FILE", help=f"a file with the columns {', '.join(COLUMNS)}")
    below_1 = math.nextafter(1, 0)
    momentum = number(float, "a number from 0 to below 1", 0, below_1)
    fraction = number(float, "a number between 0 and 1", math.ulp(0), below_1)
    for flag, default, kind, meaning in (
        ("--hidden", 0, number(int, "an integer from 0 to 10000", 0, 10_000), "tanh units, 0 for a linear model"),
        ("--epochs", 1000, count_or_none, "passes over the training part"),
        ("--batch-size", 32, count, "rows in one step, at most"),
        ("--lr", 0.1, rate, "the learning rate to begin with"),
        ("--momentum", 0.9, momentum, "of the gradient descent"),
        ("--seed", 0, count_or_none, "of the split, the weights and the batches"),
        ("--test-fraction", 0.2, fraction, "the rows set aside for testing"),
    ):
        add(flag, type=kind, default=default, metavar="N", help=f"{meaning} (default: {default})")
    add("--eager", action="store_true", help="gradients from backward() instead of code from jit")
    add("--json", action="store_true", help="print one JSON object instead of the report")
    add("--plot", metavar="FILE.png", help="draw losses, and predicted against true incomes")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Load, train, report; returns the exit code."""
    return run(job, argv)


if __name__ == "__main__":
    sys.exit(main())
