"""Every command and its options; the code behind a command is imported when it runs."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import click

from ffjord_kit.cli.options import (
    IMAGES,
    OUTPUT,
    Count,
    HeadedCommand,
    Numbers,
    RunPath,
    Widths,
    command_line_options,
    field_options,
    headed,
    series_field_options,
)
from ffjord_kit.version import __version__
from ffjord_kit.words import DENSITIES

MAIN, TABLE = "Main", "Table"
AHEAD = click.FloatRange(min=0)
SEED = click.IntRange(0, 2**32 - 1)

run_argument = click.argument("run", type=RunPath())
level_option = click.option(
    "--level", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.9, show_default=True,
    metavar="FLOAT", help="Probability of the bands.",
)  # fmt: skip
force_option = click.option("--force", is_flag=True, help="Replace existing files.")
density_option = click.option(
    "--density",
    type=click.Choice(["auto", *DENSITIES]),
    default="auto",
    show_default=True,
    help="Of a run that holds both: its few exact steps, or its continuous flow; auto: the one that reports.",
)


def seed_option(text: str, **options: Any) -> Callable[[Any], Any]:
    """Declare the seed of a command.

    Args:
        text: Help.
        options: Further arguments of `click.option`.

    Returns:
        The decorator.
    """
    return click.option("--random-state", "--seed", "random_state", type=SEED, metavar="INT", help=text, **options)


FIRST_STEPS = """ffjord-kit fits a density to data. Three things to do next:

  ffjord-kit demo                               see it at work, in a few minutes: then open demo/report.html
  ffjord-kit fit table.csv --out runs/mine      fit your own table, or moons, a built-in set
  ffjord-kit report runs/mine --out mine.html   see the model on one page, and with doctor whether it is good

ffjord-kit --help lists all commands."""


@click.group(
    invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__)
@click.pass_context
def cli(context: click.Context) -> None:
    """Fit a density to data, draw samples, compute log-likelihoods, and watch the flow."""
    if context.invoked_subcommand is None:
        click.echo(FIRST_STEPS)


@cli.command(cls=HeadedCommand)
@click.argument("source", metavar="[DATA]", required=False)
@headed("--out", heading=MAIN, type=click.Path(), help="Folder of the run.")
@headed("--resume", heading=MAIN, type=click.Path(), metavar="RUN", help="Continue an interrupted run.")
@headed(
    "--rows",
    heading=MAIN,
    type=int,
    metavar="INT",
    help="Rows to draw from a toy, or size of a random subset of a table.",
)
@headed(
    "--context", "context_columns", heading=MAIN, default="", metavar="COLUMN,...",
    help="Columns to condition on, by name or number, e.g. a,b; for images: label.",
)  # fmt: skip
@headed(
    "--weight", heading=TABLE, metavar="COLUMN",
    help="Column of the rows' weights, by name or number, which leaves the table; weights may be negative.",
)  # fmt: skip
@headed(
    "--noise-columns", heading=TABLE, default="", metavar="COLUMN=ERROR,...",
    help="Columns of the standard deviations of others' measurement errors, which are removed, e.g. a=a_err,b=b_err.",
)  # fmt: skip
@headed(
    "--drop",
    heading=TABLE,
    default="",
    metavar="COLUMN,...",
    help="Columns to leave out: names or numbers, e.g. id,3.",
)
@headed("--dry-run", heading=MAIN, is_flag=True, help="Check everything, print the configuration as JSON, and stop.")
@headed(
    "--size",
    heading=IMAGES,
    type=click.IntRange(min=2),
    metavar="INT",
    help="Crop images to a square, and average to this side.",
)
@headed("--grey", heading=IMAGES, is_flag=True, help="Convert images to grey levels.")
@headed("--force", heading=OUTPUT, is_flag=True, help="Replace an existing run in the folder.")
@field_options
@click.pass_context
def fit(context: click.Context, **options: Any) -> None:
    """Fit a flow to DATA and keep it in a run folder.

    DATA is a named data set (see `ffjord-kit data`), a file (text, NumPy, Parquet,
    Feather, Excel, HDF5, FITS or JSON), or a folder of pictures.
    Condition images on their classes by --context label.

    Several processes train together by: torchrun --standalone --nproc-per-node 2 -m ffjord_kit fit DATA --out RUN.
    """
    if options["resume"] is not None:
        _refuse_options_beside_resume(context)
        _call("fit", "resume", path=options["resume"], verbose=options["verbose"])
    elif options["source"] is None or (options["out"] is None and not options["dry_run"]):
        raise click.UsageError("fit needs DATA and --out RUN, or --resume RUN")
    else:
        _call("fit", "fit", options=options, explicit=command_line_options(context))


@cli.command()
@run_argument
@click.option(
    "-n",
    "--n-samples",
    type=Count(min=1),
    metavar="INT",
    help="Number of samples, e.g. 5000 or 1e6. [default: 1000; images 64]",
)
@click.option(
    "--out",
    type=click.Path(),
    required=True,
    help="File: .csv, .tsv, .npy, .npz, .parquet, .feather, .xlsx; images: .npz.",
)
@click.option(
    "--context",
    help="Context of a conditional run: values 1.0,2.5 or age=40,kids=2 for all samples, a file of rows, or classes.",
)
@click.option(
    "--given", metavar="COLUMN=VALUE,...", help="Values of columns, of a run of fit --subsets: the others are drawn."
)
@seed_option("Seed of the noise.")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    metavar="INT",
    help="Number of fixed midpoint steps of the continuous flow. [default: exact draws of the density that reports]",
)
@density_option
@click.option(
    "--guidance",
    type=float,
    metavar="FLOAT",
    default=1.0,
    show_default=True,
    help="Strength of the context; above 1: stronger.",
)
@force_option
def sample(**options: Any) -> None:
    """Draw samples from a RUN into a file.

    Samples of images go to an NPZ file and to a PNG sheet beside it.
    """
    _call("sample", "sample", **options)


@cli.command()
@run_argument
@click.argument("source", metavar="DATA")
@click.option(
    "--draws", type=click.IntRange(min=1), metavar="INT", default=20, show_default=True, help="Number of fillings."
)
@click.option(
    "--out", type=click.Path(), required=True, help="File: .csv, .tsv, .npy, .npz, .parquet, .feather, .xlsx."
)
@seed_option("Seed of the noise.")
@force_option
def impute(**options: Any) -> None:
    """Fill the missing cells of DATA by draws of a RUN of fit --subsets, given the observed cells of each row.

    One filling is written as the table; of several each row has the numbers of its filling and its row in front.
    """
    _call("impute", "impute", **options)


@cli.command()
@run_argument
@click.argument("source", metavar="DATA")
@click.argument("other", metavar="[OTHER]", required=False)
@click.option("--out", type=click.Path(), help="File for the result of each row.")
@click.option(
    "--rows",
    type=click.IntRange(min=2),
    metavar="INT",
    help="Size of a random subset. [default: all; 1000 with --certify or --error but without --out; 256 images]",
)
@click.option("--certify", is_flag=True, help="State the numerical error of each row; costs three times the work.")
@click.option("--error", type=float, metavar="NATS", help="Refine the solve row by row until its error is this small.")
@click.option("--probes", type=int, metavar="INT", help="Number of Hutchinson probes. [default: exact trace; images 2]")
@click.option(
    "--draws",
    type=click.IntRange(min=1),
    metavar="INT",
    default=1,
    show_default=True,
    help="Draws of the noise on images.",
)
@click.option(
    "--context", help="One context for all rows, 1.0,2.5 or age=40,kids=2. [default: that of each row, in DATA]"
)
@density_option
@click.option("--outliers", is_flag=True, help="Compute outlier scores: likelihood, typicality, gradient.")
@click.option("--picture", type=click.Path(), help="PNG of the outlier scores of DATA and OTHER.")
@force_option
def score(**options: Any) -> None:
    """Compute the log-likelihood of DATA under a RUN.

    The mean comes with its standard error, in nats and in bits per dimension, and with the numerical error.

    With --outliers, compute outlier scores of each row, and how well each score separates DATA from OTHER.
    """
    if (options["other"] is not None or options["picture"] is not None) and not options["outliers"]:
        raise click.UsageError("OTHER data and --picture need --outliers")
    certified = options["certify"] or options["error"] is not None
    if options["outliers"] and (certified or options["probes"] is not None or options["draws"] > 1):
        raise click.UsageError("--outliers takes neither --certify, --error, --probes nor --draws")
    if options["draws"] > 1 and certified:
        raise click.UsageError("--draws takes neither --certify nor --error")
    _call("score", "score", **options)


@cli.command()
@run_argument
@click.argument("source", metavar="ROWS")
@click.option("--allow", metavar="COLUMN,...", help="Real columns that may change, by name or number. [default: all]")
@click.option(
    "--stable", type=click.FloatRange(min=0), metavar="FLOAT", default=0.05, show_default=True,
    help="Every change this near must mend the row too, in scales of the columns.",
)  # fmt: skip
@click.option(
    "--threshold", type=float, metavar="NATS",
    help="Log-density that a row must have. [default: the quantile of that of the fit's rows]",
)  # fmt: skip
@click.option(
    "--quantile", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="FLOAT", default=0.01,
    show_default=True, help="Quantile that sets the threshold.",
)  # fmt: skip
@click.option("--bounds", metavar="COLUMN=LOW..HIGH,...", help="Bounds of a change. [default: the range of the fit]")
@click.option(
    "--rows", type=click.IntRange(min=1), metavar="INT", default=20, show_default=True,
    help="Most rows to explain, the least likely first.",
)  # fmt: skip
@click.option("--out", type=click.Path(), help="File for the corrections.")
@click.option("--picture", type=click.Path(), help="Picture of the changes, of two columns: .png, .pdf or .svg.")
@seed_option("Seed of all draws.", default=0, show_default=True)
@force_option
def explain(**options: Any) -> None:
    """Explain why ROWS are outliers for a RUN on a table: the smallest change that mends each.

    A row is an outlier if its log-density is below the threshold. The change is stable, and comes with a box of changes
    that mend the row too, of which thousands of draws were tried.
    """
    _call("explain", "explain", **options)


@cli.command()
@run_argument
@click.argument("source", metavar="[DATA]", required=False)
@click.option("--out", type=click.Path(file_okay=False), required=True, help="Folder for the page and its pictures.")
@seed_option("Seed of all random draws.", default=0, show_default=True)
@force_option
def look(**options: Any) -> None:
    """Look at what training did to a RUN on a table: the loss around it, scales, neurons, and an adversary.

    DATA are rows that the run has not seen. [default: those that it held out]
    """
    _call("look", "look", **options)


@cli.command()
@run_argument
@click.argument("source", metavar="[DATA]", required=False)
@click.option(
    "--rows", type=click.IntRange(min=1), metavar="INT", default=1000, show_default=True, help="Largest number of rows."
)
@click.option("--out", type=click.Path(file_okay=False), help="Folder for the picture.")
@seed_option("Seed of all random draws.", default=0, show_default=True)
@force_option
def doctor(**options: Any) -> None:
    """Examine a RUN on a table.

    Each check is a line with a verdict: is the density sound, are the solves accurate, and does the flow fit DATA?
    DATA must be new to the run; the default is the rows that the run held out.
    """
    _call("doctor", "doctor", **options)


@cli.command()
@run_argument
@click.argument("source", metavar="[DATA]", required=False)
@click.option("--out", type=click.Path(), required=True, help="Folder of the new run.")
@click.option(
    "--pairs",
    type=click.IntRange(min=2),
    metavar="INT",
    default=20_000,
    show_default=True,
    help="Pairs to draw from RUN.",
)
@click.option(
    "--steps", type=click.IntRange(min=1), metavar="INT", default=4_000, show_default=True, help="Training steps."
)
@click.option(
    "--learning-rate", type=float, metavar="FLOAT", default=8e-3, show_default=True, help="Peak learning rate."
)
@click.option(
    "--hidden", type=Widths(), metavar="INT,...",
    help="Widths of a new network, e.g. 32, which is fast. [default: the network of RUN]",
)  # fmt: skip
@seed_option("Seed of the pairs and of the training.")
@force_option
def reflow(**options: Any) -> None:
    """Straighten a RUN on a table, so that a few steps suffice.

    Reflow trains the network on pairs of base points and samples of RUN, which stays as it is. A table compares both
    by the log-likelihood of DATA; the default is the rows that RUN held out.
    """
    _call("reflow", "reflow", **options)


@cli.command()
@run_argument
@click.argument("source", metavar="[DATA]", required=False)
@click.option("--out", type=click.Path(), required=True, help="Folder of the new run.")
@click.option("--steps", type=int, help="Number of steps, e.g. 4 for a cheap density. [default: by held-out rows]")
@click.option("--method", metavar="WORD", help="Scheme of the steps, e.g. midpoint. [default: by held-out rows]")
@click.option(
    "--max-seconds", type=float, metavar="FLOAT", default=60.0, show_default=True, help="Seconds of training."
)
@force_option
def discretize(**options: Any) -> None:
    """Give a RUN on a table a density in few exact steps.

    It costs a fixed number of evaluations, and has no solver's error. The steps are chosen on the rows that RUN held
    out, and trained on by their exact likelihood. DATA are the rows of the fit, if RUN no longer finds them.
    """
    _call("discretize", "discretize", **options)


@cli.command()
@run_argument
@click.argument("source", metavar="[DATA]", required=False)
@click.option("--out", type=click.Path(), required=True, help="Folder of the new run.")
@click.option(
    "--loss",
    type=float,
    default=0.005,
    show_default=True,
    help="Largest loss on held-out rows, nats.",
)
@click.option("--steps", type=int, default=3000, show_default=True, help="Steps of training of each width tried.")
@force_option
def condense(**options: Any) -> None:
    """Give a RUN on a table a narrower network of the same density, which scores faster.

    Neurons that others can stand in for are merged, and the rest imitates the old field. The narrowest network is kept
    that stays within the loss on the rows that RUN held out. DATA are the rows of the fit, if RUN no longer finds them.
    """
    _call("condense", "condense", **options)


@cli.command()
@run_argument
@click.option("--out", type=click.Path(file_okay=False), required=True, help="Folder for the pictures.")
@click.option(
    "--context",
    help="Context of a conditional run: values 1.0,2.5 or age=40,kids=2, or classes. "
    "[default: the median, or all classes]",
)
@seed_option("Seed of the samples.", default=0, show_default=True)
@click.option("--data", "source", help="Data to draw beside the samples. [default: the data of the fit]")
@click.option(
    "--format", "picture_format", type=click.Choice(["png", "pdf", "svg"]), default="png", show_default=True,
    help="Format of the pictures; pdf and svg are vector graphics.",
)  # fmt: skip
@force_option
def plot(**options: Any) -> None:
    """Draw pictures of a RUN.

    They show the training; of two columns the density, samples, trajectories and velocity; of a table its columns, one
    by one and in pairs, each as its type has it; of a conditional run a sweep over its contexts; of images sheets,
    strips, interpolations, nearest neighbours and extremes.
    """
    _call("plot", "plot", **options)


@cli.command()
@run_argument
@click.argument("source", metavar="[DATA]", required=False)
@click.option("--out", type=click.Path(dir_okay=False), required=True, help="File of the page, e.g. report.html.")
@click.option(
    "--context", help="Context of a conditional run: values 1.0,2.5 or classes. [default: the median, or all classes]"
)
@seed_option("Seed of all random draws.", default=0, show_default=True)
@force_option
def report(**options: Any) -> None:
    """Report a RUN on one page, in one file that a browser shows without a network.

    It holds what was fitted, the density with data and draws, the flow under a slider, calibration and verdicts, the
    most and the least likely rows, and the error of every number. DATA are rows that the run has not seen.
    [default: those that it held out]
    """
    _call("report", "report", **options)


@cli.group()
def series() -> None:
    """Fit latent ODEs to irregular series, predict them, and draw them.

    A file of series is CSV or TSV in long form, with a header: the name of the series, the time, and a column for each
    channel, empty where it was not seen.
    """


@series.command("fit")
@click.argument("source", metavar="[DATA]", required=False)
@click.option("--out", type=click.Path(), help="Folder of the run.")
@click.option("--resume", type=click.Path(), metavar="RUN", help="Continue an interrupted run.")
@series_field_options
@click.option("--force", is_flag=True, help="Replace an existing run in the folder.")
@click.pass_context
def fit_series(context: click.Context, **options: Any) -> None:
    """Fit a latent ODE to DATA, a file of series or `spirals`, and keep it in a run folder."""
    if options["resume"] is not None:
        _refuse_options_beside_resume(context)
    elif options["source"] is None or options["out"] is None:
        raise click.UsageError("series fit needs DATA and --out RUN, or --resume RUN")
    _call("series", "fit_series", options=options)


@series.command("predict")
@run_argument
@click.argument("source", metavar="DATA")
@click.option("--out", type=click.Path(), required=True, help="File: .csv or .tsv.")
@click.option("--times", type=Numbers(), metavar="FLOAT,...", help="Times. [default: those of each series]")
@click.option("--ahead", type=AHEAD, metavar="TIME", help="Go on for this time after the last row of each series.")
@level_option
@force_option
def predict_series(**options: Any) -> None:
    """Predict DATA by a RUN: the mean of each channel, and a band that holds a new observation.

    Where a value of DATA is missing, this is its imputation.
    """
    if options["times"] is not None and options["ahead"] is not None:
        raise click.UsageError("pass --times or --ahead, not both")
    _call("series", "predict_series", **options)


@series.command("plot")
@run_argument
@click.argument("source", metavar="[DATA]", required=False)
@click.option("--out", type=click.Path(file_okay=False), required=True, help="Folder for the pictures.")
@click.option("--ahead", type=AHEAD, metavar="TIME", help="Time to extrapolate. [default: half of each series]")
@level_option
@force_option
def plot_series(**options: Any) -> None:
    """Draw the training of a RUN, and its reconstruction and extrapolation of some series."""
    _call("series", "plot_series", **options)


@cli.command()
@run_argument
def info(**options: Any) -> None:
    """Describe a RUN: data, options and result."""
    _call("info", "describe_run", **options)


@cli.command()
def data() -> None:
    """List the named data sets."""
    _call("info", "list_data")


@cli.command()
@click.option("--out", type=click.Path(file_okay=False), default="demo", show_default=True, help="Folder to fill.")
@seed_option("Seed of everything.", default=0, show_default=True)
@force_option
def demo(**options: Any) -> None:
    """Fit, compare and draw two data sets, and report the first on one page.

    The data are two moons and the 8x8 digits; the comparison is with a Gaussian mixture and a KDE.
    """
    _call("demo", "demo", **options)


def _call(module: str, function: str, **options: Any) -> None:
    """Check what the options name, import the module behind a command, which takes seconds, and call its function."""
    from rich.console import Console  # here, as help and usage errors do without them

    from ffjord_kit.cli.checks import CHECKS

    if function in CHECKS:
        CHECKS[function](**options)
    with Console(stderr=True).status("loading PyTorch"):
        implementation = import_module(f"ffjord_kit.cli.{module}")
    getattr(implementation, function)(**options)


def _refuse_options_beside_resume(context: click.Context) -> None:
    """Refuse options that a resumed run cannot take."""
    others = [name for name in command_line_options(context) if name not in ("resume", "verbose")]
    if others:
        raise click.UsageError(f"--resume takes its data and options from the run: leave out {', '.join(others)}")
