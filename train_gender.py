# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy>=2.0", "pandas>=2.2.2", "kagglehub>=1.0", "tqdm>=4.67"]
# ///
"""The tensor job: predict income from gender, age and height.

It loads the Kaggle dataset ``muhammadtalharasool/simple-gender-classification`` (or a CSV file with its columns, or a
generated sample), scales every column to [0, 1], trains a linear model, or with ``--hidden N`` one hidden layer of N
tanh units, and sets the errors beside two yardsticks: the training mean and the closed-form least-squares fit.

    python train_gender.py                             # Kaggle, or the sample where Kaggle cannot be reached
    python train_gender.py --csv gender.csv --hidden 16
"""

import argparse
import contextlib
import json
import os
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from tinygrad_lite import SGD, Tensor, grad, jit

COLUMNS = ["Gender", "Age", "Height (cm)", "Income (USD)"]  # three features and the target
DATASET = "muhammadtalharasool/simple-gender-classification"
KINDS = {b"\x1f\x8b": {"compression": "gzip"}, b"\xff\xfe": {"encoding": "utf-16"}, b"\xfe\xff": {"encoding": "utf-16"}}


# --- Data -------------------------------------------------------------------------------------------------------------


def read(path):
    """The columns of a CSV file as numbers, male 1 and female 0: of text in UTF-8 or UTF-16, or compressed by gzip."""
    try:
        with open(path, "rb") as file:
            kind: dict = KINDS.get(file.peek(2)[:2], {})
            cells = pd.read_csv(file, header=None, dtype=str, keep_default_na=False, skipinitialspace=True, **kind)
        cells = cells.set_axis(cells.iloc[0].str.strip(), axis=1).loc[1:, COLUMNS]
        male = cells["Gender"].str.strip().str.lower().map({"male": 1, "female": 0})
        table = cells.assign(Gender=male).apply(pd.to_numeric, errors="coerce").astype(float)
    except Exception as error:  # of many kinds
        raise ValueError(f"{path} cannot be read as a CSV file with columns {COLUMNS}: {error}") from None
    for row, i in np.argwhere(~np.isfinite(table.to_numpy()))[:1]:
        raise ValueError(f"{path}, row {row + 1}: {COLUMNS[i]!r} cannot be {cells.iat[row, i]!r:.60}")
    return table


def sample():
    """Made rows like those of the real file."""
    rng, size = np.random.default_rng(131), 131
    male, age = rng.integers(0, 2, size), rng.integers(20, 61, size)
    income = rng.normal(1_500 * age + 5_000 * male + 20_000, 20_000).clip(15_000).round(-3)
    return pd.DataFrame(np.c_[male, age, rng.normal(165 + 13 * male, 6).round(), income], columns=COLUMNS)


def ask_kaggle(found):
    """Find the path of gender.csv: in the newest version or, if Kaggle does not give that, in one that is cached."""
    cache = Path(os.environ.get("KAGGLEHUB_CACHE") or Path.home() / ".cache" / "kagglehub", "datasets", DATASET)
    for version in "", *[f"/versions/{path.name}" for path in sorted(cache.glob("versions/*"), reverse=True)]:
        try:
            import kagglehub  # type: ignore[import-untyped]

            found["path"] = Path(kagglehub.dataset_download(DATASET + version), "gender.csv")
            return
        except BaseException as error:  # whatever it is
            found["reason"] = f"{type(error).__name__}: {error}"


def load(options):
    """The table and the name of its source."""
    if options.csv is not None:
        return read(options.csv), options.csv
    if options.source != "sample":
        found, err = {"reason": "no answer within 15 s"}, sys.stderr
        thread = threading.Thread(target=ask_kaggle, args=[found], daemon=True)  # as kagglehub waits without limit
        # And it talks.
        with open(os.devnull, "w") as nobody, contextlib.redirect_stdout(nobody), contextlib.redirect_stderr(nobody):
            thread.start()
            for _ in tqdm(range(15), "asking Kaggle", unit=" s", delay=1, leave=False, disable=None, file=err):
                thread.join(1)
        try:
            return read(found["path"]), f"kaggle ({DATASET}, version {Path(found['path']).parent.name})"
        except (KeyError, ValueError) as error:
            reason = textwrap.shorten(str(error) if "path" in found else found["reason"], 300, placeholder=" ...")
        if options.source == "kaggle":
            raise ValueError(f"no data from Kaggle ({reason}): give --csv FILE or --source sample")
        print(f"warning: no data from Kaggle ({reason}): using the generated sample", file=sys.stderr)
    return sample(), "sample (131 generated rows, not real data)"


# --- Model ------------------------------------------------------------------------------------------------------------


def predict(parameters, x):
    """The scaled incomes, (rows, 1), for scaled features, (rows, 3): a layer on the tanh of those before, if any."""
    *before, weight, bias = parameters
    return (predict(before, x).tanh() if before else x) @ weight + bias


def squared_error(parameters, x, y):
    return ((predict(parameters, x) - y) ** 2).mean()


# --- Loop and report --------------------------------------------------------------------------------------------------


def measure(predicted, y, dollars):
    """The errors of predictions, ``dollars`` being the scaled unit; no R2 where all of y is one number."""
    error, spread = predicted - y, np.square(y - y.mean()).sum()
    r2 = float(1 - np.square(error).sum() / spread) if spread > 1e-20 else None
    return {"mse": float(np.square(error).mean()), "mae_usd": float(np.abs(error).mean() * dollars), "r2": r2}


@np.errstate(all="ignore")  # an overflow shows in the loss
def fit(options):
    """Train and report; returns the exit code."""
    if options.plot is not None:
        from matplotlib import pyplot  # before the work, lest it be done for nothing
    table, source = load(options)
    say = (lambda *text: None) if options.json else print
    test, rng = table.sample(frac=options.test_fraction, random_state=options.seed), np.random.default_rng(options.seed)
    rows = {"train": table.drop(test.index), "test": test}
    if len(table) < 5 or not 0 < len(test) < len(table):
        raise ValueError(f"{len(test)} of {len(table)} rows for testing: there must be 5 rows, and some in both parts")
    low, span = rows["train"].min(), rows["train"].max() - rows["train"].min()
    for column in table.columns[~((span > 0) & (span < np.inf))]:
        raise ValueError(f"{column!r} must vary in the rows for training, and not overflow")
    parts = {part: np.split(((those - low) / span).to_numpy(), [3], axis=1) for part, those in rows.items()}
    say(f"source: {source}\nrows: {len(rows['train'])} for training, {len(test)} for testing")

    shapes = [(3, options.hidden), (options.hidden, 1)] if options.hidden else [(3, 1)]
    parameters = [Tensor(x, requires_grad=True) for n, m in shapes for x in (rng.normal(0, n**-0.5, (n, m)), [0.0] * m)]
    optimizer, losses = SGD(parameters, lr=options.lr, momentum=options.momentum), []
    slopes = jit(lambda x, y: grad(squared_error)(parameters, x, y))
    x, y = parts["train"]
    with contextlib.suppress(KeyboardInterrupt):
        for epoch in tqdm(range(options.epochs + 1), delay=1, leave=False, disable=None):
            # Half a cosine, down to 0, lets the linear model settle on the least-squares fit.
            optimizer.lr = options.lr * (1 + np.cos(np.pi * (epoch - 1) / max(options.epochs, 1))) / 2
            for some in np.array_split(rng.permutation(len(x)), -(-len(x) // options.batch_size)) if epoch else []:
                optimizer.zero_grad()
                if options.eager:
                    squared_error(parameters, x[some], y[some]).backward()
                else:
                    for parameter, slope in zip(parameters, slopes(x[some], y[some]), strict=True):
                        parameter.grad = slope
                optimizer.step()
            losses.append({part: squared_error(parameters, *values).item() for part, values in parts.items()})
            if not np.isfinite([*losses[-1].values()]).all():
                raise ValueError(f"the loss overflowed in epoch {epoch}: choose an --lr below {options.lr:g}")
            if epoch % max(1, options.epochs // 10) == 0:
                say("epoch {:5}: training loss {train:.6g}, test loss {test:.6g}".format(epoch, **losses[-1]))

    def score(model):
        return {part: measure(model(x), y, span.iloc[3]) for part, (x, y) in parts.items()}

    found = {"model": score(lambda x: predict(parameters, x).data), "mean": score(lambda _: y.mean())}
    solution = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y)[0]
    found["least_squares"] = score(lambda x: np.c_[x, np.ones(len(x))] @ solution)
    say(pd.DataFrame({(part, name): found[name][part] for part in parts for name in found}).T.to_string())
    dollars = {part: low.iloc[3] + span.iloc[3] * predict(parameters, x).data for part, (x, _) in parts.items()}
    guesses = pd.concat({part: rows[part].assign(Predicted=dollars[part]) for part in parts})
    say("Some rows of the test part:\n" + guesses.loc["test"].head().to_string(index=False))
    code = 130 if len(losses) <= options.epochs else 0
    if options.json:
        print(json.dumps({"source": source, "epochs": len(losses) - 1, "interrupted": code > 0, **found}))
    if options.plot is not None:
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
        pd.DataFrame(losses).plot(ax=left, logy=True, xlabel="epoch", ylabel="mean squared error of scaled data")
        guesses.plot.scatter(COLUMNS[3], "Predicted", ax=right)
        right.axline((low.iloc[3], low.iloc[3]), slope=1)
        figure.savefig(options.plot, dpi=120)
    return code


# --- Command line -----------------------------------------------------------------------------------------------------


def main(argv=None):
    """Read the options, load, train and report; returns the exit code."""
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__.splitlines()[0])
    add, add_source = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add_source("--source", choices=["auto", "kaggle", "sample"], default="auto", help="auto: kaggle, or else sample")
    add_source("--csv", metavar="FILE", help=f"a file with the columns {', '.join(COLUMNS)}")
    add("--hidden", type=int, default=0, help="tanh units, 0 for a linear model (default 0)")
    add("--epochs", type=int, default=1000, help="passes over the training part (default 1000)")
    add("--batch-size", type=int, default=32, help="rows in one step, at most (default 32)")
    add("--lr", type=float, default=0.1, help="the learning rate to begin with (default 0.1)")
    add("--momentum", type=float, default=0.9, help="of the gradient descent (default 0.9)")
    add("--seed", type=int, default=0, help="of the split, the weights and the batches (default 0)")
    add("--test-fraction", type=float, default=0.2, help="of the rows, set aside for testing (default 0.2)")
    add("--eager", action="store_true", help="gradients from backward() instead of code from jit")
    add("--json", action="store_true", help="print one JSON object instead of the report")
    add("--plot", metavar="FILE", help="draw losses, and predicted against true incomes, as PNG, SVG or PDF")
    options = parser.parse_args(argv)
    if not sys.stdout or min(options.hidden, options.epochs, options.batch_size - 1, options.test_fraction) < 0:
        parser.error("numbers must not be negative, --batch-size 1 or more, and standard output open")
    try:
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        return fit(options)
    except (Exception, KeyboardInterrupt) as error:
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 2


if __name__ == "__main__":
    os._exit(main())  # without one more flush of standard output, which may have failed
