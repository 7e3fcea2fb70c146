"""Every bad input that somebody thought of: what it is told in one line, and that it leaves nothing behind.

Commands run in a folder with the files of `write_files` and the runs of `write_runs`; `fit` gets a tiny schedule.
"""

import gzip
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ffjord_kit import CNF, FFJORD, Flow, FlowMatching, ImageFFJORD, ResidualDynamics, Standardize
from ffjord_kit.cli import main
from ffjord_kit.data import Batch
from ffjord_kit.distributions import StudentT
from ffjord_kit.ode import AdaptiveSolver, make_solver
from ffjord_kit.run import FORMAT, Run
from ffjord_kit.trace import HutchinsonTrace
from ffjord_kit.training import Phase, fit_flow
from ffjord_kit.transforms.bounded import Logit, Softplus

TINY = {"schedule": [("flow_matching", 2)], "hidden": (4,), "random_state": 0}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 3))


def text(rows, header):
    return "\n".join([header, *(",".join(map(str, row)) for row in rows), ""])


def write_files():
    texts = {
        "table.csv": text(X, "width,height,age"), "swapped.csv": text(X, "height,width,age"),
        "two.csv": text(X[:, 1:], "height,age"), "changed.csv": text(X, "a,b,c"), "gone.csv": text(X, "a,b,c"),
        "nan.csv": "a,b\n1,2\n3,nan\n4,\n", "text.csv": "a,b\n1,red\n3,4\n",
        "constant.csv": text([(v, 3) for v in range(5)], "a,level"), "one.csv": "a,b\n1,2\n", "empty.csv": "",
        "ragged.csv": "a,b\n1,2\n3,4,5\n", "table.xlsx": "?", "table.xyz": "?", "old.xls": "?",
        "thousands.csv": "a;b\n1.000,5;2\n3,5;4\n",
        "collinear.csv": text(np.stack([X[:, 0], 2 * X[:, 0]], 1), "a,b"), "ages.csv": "age\n1\n2\n", "file": "mine",
    }  # fmt: skip
    for name, content in texts.items():
        Path(name).write_text(content)
    np.save("flat.npy", np.arange(3.0))
    np.save("deep.npy", np.zeros((2, 2, 2, 2)))
    np.save("objects.npy", np.array([[1, "a"]], dtype=object))
    np.savez("several.npz", a=np.eye(3), b=np.eye(2))
    Path("cut.npy").write_bytes(Path("deep.npy").read_bytes()[:150])
    Path("cut.csv.gz").write_bytes(gzip.compress(RNG.bytes(2000))[:800])
    Path("folder").mkdir()
    Path("folder/note.txt").write_text("mine")


def write_runs():
    for name, data in (("run", "table"), ("changed", "changed"), ("gone", "gone")):
        assert command(f"fit {data}.csv --out {name} --no-verbose") == 0
    assert command("fit table.csv --context age --out conditional --no-verbose") == 0
    Path("changed.csv").write_text(text(X + 1, "a,b,c"))
    Path("gone.csv").unlink()
    FFJORD(**TINY).fit(X, run="python")
    for name in ("cut-config", "later", "cut-model", "no-model", "nan-model", "cut-checkpoint", "no-checkpoint"):
        shutil.copytree("run", name)
    Path("cut-config/config.json").write_text('{"format": 1, "vers')
    later = {**json.loads(Path("later/config.json").read_text()), "format": 7, "version": "3.1"}
    Path("later/config.json").write_text(json.dumps(later))
    for path in ("cut-model/model.safetensors", "cut-checkpoint/checkpoint/state.safetensors"):
        Path(path).write_bytes(Path(path).read_bytes()[:700])
    Path("no-model/model.safetensors").unlink()
    shutil.rmtree("no-checkpoint/checkpoint")
    nan = {name: value * np.nan for name, value in load_file("run/model.safetensors").items()}
    save_file(nan, "nan-model/model.safetensors")


def command(line):
    """The exit code of a command."""
    tiny = (
        "--schedule flow_matching:2 --hidden 4 --seed 0 " if line.startswith("fit") and "--resume" not in line else ""
    )
    name, *rest = shlex.split(line)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["ffjord-kit", name, *shlex.split(tiny), *rest])
        main()
    return ended.value.code or 0


DATA = {
    "a file's name misspelt": ("tabel.csv", r"tabel\.csv: no such file \(did you mean 'table\.csv'\?\)"),
    "a set's name misspelt": ("mooons", r"no data set and no file 'mooons' \(did you mean 'moons'\?\); the data .*"),
    "a split that is none": ("moons:valid", "'moons:valid': the splits of moons are train and test; got 'valid'"),
    "one value beside missing cells": (
        "nan.csv",
        r"column 'b' has one value in all rows .* drop it, or add noise to it",
    ),
    "a column of text": ("text.csv", r"text\.csv: text in 'b' \(1 of 2 rows, first 'red' on line 2\); drop .*"),
    "a constant column": ("constant.csv", "column 'level' has one value in all rows .* drop it, or add noise to it"),
    "one row": ("one.csv", r"Found array with 1 sample\(s\) .* a minimum of 2 is required by FFJORD\."),
    "ragged rows": ("ragged.csv", r"ragged\.csv: line 3 has 3 cells; expected 2, as on line 1"),
    "an empty file": ("empty.csv", r"empty\.csv: the file is empty; expected a row for each observation"),
    "an unknown extension": ("table.xyz", r"table\.xyz: unknown extension '\.xyz'; known: \.csv, .*"),
    "Excel's old form": ("old.xls", r"old\.xls: unknown extension '\.xls'; Excel's old form .* save it as \.xlsx, .*"),
    "a compressed file cut short": ("cut.csv.gz", r"cut\.csv\.gz: damaged, or cut short: it cannot be unpacked .*"),
    "text called Excel": ("table.xlsx", r"table\.xlsx: damaged, or not an Excel file \(.*\)"),
    "thousands": ("thousands.csv", r"thousands\.csv: text in 'a' .*; drop .* no mark of thousands"),
    "a folder as data": ("folder", r"folder: a folder; give a file in it \(note\.txt\)"),
    "an array of one axis": ("flat.npy", r"flat\.npy: shape \(3,\); expected .*; for one column save x\[:, None\]"),
    "an array of four axes": ("deep.npy", r"deep\.npy: shape \(2, 2, 2, 2\); expected \(rows, columns\) or .*"),
    "an array of objects": ("objects.npy", r"objects\.npy: pickled Python objects, which are never loaded; .*"),
    "an array cut short": ("cut.npy", r"cut\.npy: damaged, or not a NumPy file \(.*\)"),
    "several arrays": ("several.npz", r"several\.npz: holds a, b; name the one to read, as in several\.npz:KEY"),
    "more rows than there are": ("table.csv --rows 99", r"table\.csv has 12 rows; got rows=99"),
    "a negative seed": ("table.csv --seed -1", "seed must be at least 0; got -1"),
    "an unknown context": (
        "table.csv --context agee",
        r"no column 'agee' \(did you mean 'age'\?\); the columns are .*",
    ),
}

SCHEDULE = (
    r"schedule must be 'auto', or read like 'flow_matching:4000,mle:60s', steps or seconds "
    r"\(flow_matching, mle, transforms, steps\); got '{}'"
)
REGULARIZERS = (
    r"regularizers must read like 'kinetic:0\.01,jacobian:0\.01' "
    r"\(kinetic, jacobian, acceleration, jerk, hjb\); got '{}'"
)
SUPPORT = "support must be 'real', 'positive' or 'bounded:LOW:HIGH'; got '{}'"
OPTIONS = {
    "--schedule sgd:5": SCHEDULE.format("sgd:5"),
    "--schedule mle:0": SCHEDULE.format("mle:0"),
    "--transforms maf": r"transforms must read like 'maf:3' or 'nsf:2,maf:2' \(maf, nsf, nice\); got 'maf'",
    "--transforms glow:2": r"transforms must read like .* got 'glow:2'",
    "--schedule transforms:3": "the schedule has a phase 'transforms', but .*: pass .*, or drop the phase",
    "--regularizers speed:1 --schedule mle:1": REGULARIZERS.format("speed:1"),
    "--regularizers hjb:0.1": "regularizer 'hjb' needs dynamics='potential'; got dynamics='residual'",
    "--dynamics potential --activation silu": "potential dynamics have the activation 'tanh' and no .*'silu'.*",
    "--end-time 0": r"end_time must be positive; got 0\.0",
    "--regularizers kinetic:-1": REGULARIZERS.format("kinetic:-1"),
    "--support circle": SUPPORT.format("circle"),
    "--support bounded:2:1": SUPPORT.format("bounded:2:1"),
    "--columns width=wavy": "column .width.: expected a type, one of real, positive, .*",
    "--columns wide=positive": "columns names a column .wide. that is not there; there are .*",
    "--support real,real": "support must have one word for all 3 columns, or one each; got 2",
    "--support positive": "column 'width' has 5 of 12 rows outside its support, 0 to inf .*first: row 3, .*",
    "--support bounded:0:1": "column 'width' has .* outside its support, 0 to 1 with both ends left out .*",
    "--hidden 0": r"hidden must be one or more positive widths; got \(0,\)",
    "--solver rk4": "method 'rk4' takes a fixed number of steps: pass steps >= 1; got None",
    "--solver-steps 5": "method 'dopri5' adapts its steps: .* not steps=5",
    "--solver dopri5_by_row --adjoint adjoint": "method 'dopri5_by_row' has no adjoint: .*",
    "--solver scipy_solver --schedule mle:1": "method 'scipy_solver' is not differentiable: .*adjoint.*",
    "--device abacus": r"device must be 'auto' or one that this machine has \(.*cpu\); got 'abacus'",
    "--learning-rate -1": r"learning_rate must be positive; got -1\.0",
    "--validation-fraction 1": r"validation_fraction must be in \[0, 1\); got 1\.0",
    "--ema-decay 1": r"ema_decay must be in \[0, 1\); got 1\.0",
    "--probes 0": "probes must be .*at least 1; got 0",
    "--tolerance -1": r"tolerance must be positive; got -1\.0",
    "--tolerance 1e-20": ".*(1e-20 is finer than|tolerance must be .* 1e-20).*",
    "--train-tolerance 1e-12 --schedule mle:1": ".*(1e-12 is finer than|train_tolerance must be .* 1e-12).*",
    "--max-nfe 0": "max_nfe must be at least 1; got 0",
    "--blocks 0": "blocks must be a whole number, at least 1; got 0",
    "--batch-size 0": "batch_size must be a whole number, at least 1; got 0",
    "--patience 0": "patience must be a whole number, at least 1; got 0",
    "--validate-every 0": "validate_every must be a whole number, at least 1; got 0",
    "--warmup-steps -1": "warmup_steps must .*; got -1",
    "--robust 0 --schedule mle:1": r"robust must be positive; got 0\.0",
    "--robust 0.1 --schedule auto": "robust is for a schedule with a phase of maximum likelihood, e.g. .*",
    "--steer 1": r"steer must be in \[0, 1\), a part of the end time; got 1\.0",
    "--clip-norm 0": r"clip_norm must be positive; got 0\.0",
    "--weight-decay -1": r"weight_decay must not be negative; got -1\.0",
}

OPTIONS |= {
    "--dequantize agee": "dequantize names a column 'agee' that is not there; there are width, height, age",
    "--dequantize width": r"column 'width' has no values of equal steps: give its step, e\.g\. width:0\.5 .*",
    "--dequantize width:0": "dequantize must read like .*steps positive; got 'width:0'",
    "--dequantize width:x": "dequantize must read like .*; got 'width:x'",
    "--guard -1": r"guard must be at least 0, the share of the loss's noise; got -1\.0",
    "--max-seconds 5": "max_seconds is for schedule='auto': give the seconds in the schedule, e.g. mle:5s .*",
    "--schedule auto --max-seconds 0": r"max_seconds must be positive and finite; got 0\.0",
    "--schedule auto --max-seconds inf": "max_seconds must be positive and finite; got inf",
    "--schedule mle:-3": SCHEDULE.format("mle:-3"),
    "--schedule mle:0s": SCHEDULE.format("mle:0s"),
    "--schedule mle": SCHEDULE.format("mle"),
    "--schedule ''": SCHEDULE.format(""),
    "--fourier-features 2 --dynamics concat": "fourier_features are inputs of dynamics='residual'; got .*'concat'",
    "--input-scales 2 --dynamics concat": "input_scales are for dynamics='residual'; got .*'concat': leave it out",
    "--watch loss": "watch must be some of spectrum, condensation, hessian; got 'loss'",
    "--input-scales 0": "input_scales must be a whole number, at least 1; got 0",
    "--input-scales 99 --hidden 8": "input_scales must be at most the first width, 8; got 99",
    "--fourier-features -2": "fourier_features must be a whole number, at least 1; got -2",
    "--end-time -2 --learn-end-time": r"end_time must be positive; got -2\.0",
    "--support bounded:0": SUPPORT.format("bounded:0"),
    "--support bounded:a:b": SUPPORT.format("bounded:a:b"),
    "--support ''": SUPPORT.format(""),
    "--transforms maf:0": "transforms must read like .* got 'maf:0'",
    "--transforms maf:x": "transforms must read like .* got 'maf:x'",
    "--regularizers kinetic": REGULARIZERS.format("kinetic"),
    "--regularizers kinetic:x": REGULARIZERS.format("kinetic:x"),
    "--mle-learning-rate 0": r"mle_learning_rate must be positive; got 0\.0",
    "--validation-fraction -0.5": r"validation_fraction must be in \[0, 1\); got -0\.5",
    "--ema-decay -1": r"ema_decay must be in \[0, 1\); got -1\.0",
    "--steer -0.5": r"steer must be in \[0, 1\), a part of the end time; got -0\.5",
    "--tolerance nan": "tolerance must be positive; got nan",
    "--learning-rate nan": "learning_rate must be positive; got nan",
    "--probes -1 --trace rademacher": "probes must be .*at least 1; got -1",
    "--solver euler --solver-steps 0": "method 'euler' takes a fixed number of steps: pass steps >= 1; got 0",
    "--device cuda:7": r"device must be 'auto' or one that this machine has \(.*\); got 'cuda:7'",
}

NO_RUN = "{} is no run folder: .*"
COMMANDS = {
    "fit collinear.csv --scaling whiten --out out": "whitening needs a regular covariance: .*",
    "fit table.csv --out file": "file is a file: choose another folder for the run",
    "fit table.csv --out folder --force": "folder is not empty and holds no run: choose another folder",
    "fit table.csv --out file/run": ".*[Nn]ot a (directory|folder).*",
    "fit table.csv --out run": "run already holds a run: choose another folder, --resume it, or pass --force",
    "fit table.csv --out run --force --ema-decay 2": r"ema_decay must be in \[0, 1\); got 2\.0",
    "fit nan.csv --out run --force --no-subsets": r"nan\.csv: missing values in 'b' \(2 of 3 rows, first 'nan' on .*",
    "score run table.csv --error 0": r"error must be positive, in nats; got 0\.0",
    "score run table.csv --probes 1": "probes must be at least 2, or None for the exact trace; got 1",
    "sample run --out x.xls": r"x\.xls: unknown extension '\.xls'; known: .*",
    "sample run --out table.csv": r"table\.csv exists: choose another name, or pass --force",
    "sample run --out no/x.csv": r"no/x\.csv: no folder '.*no'; make it first",
    "sample run --context 1 --out x.csv": "this run takes no context: leave --context out",
    "sample conditional --out x.csv": "this run is conditional: pass --context with values of age",
    "sample conditional --context 1,2 --out x.csv": r"--context must give 1 values \(age\), .*; got shape \(1, 2\)",
    "sample conditional --context nan --out x.csv": "context contains NaN or infinity .*",
    "sample conditional -n 3 --context ages.csv --out x.csv": r"--context must .* 3 rows of them; got shape \(2, 1\)",
    "score run two.csv --out x.csv": r"two\.csv has no column 'width', which the run has; its columns are .*",
    "score conditional moons --out x.csv": "no column 'age'.*; the columns are x0, x1",
    "plot python --out p": "python was made in Python and does not name its data: .*",
    "info folder": NO_RUN.format("folder"),
    "score file table.csv": NO_RUN.format("file"),
    "sample cut-config --out x.csv": r"cut-config/config\.json is damaged \(.*\): restore it, or fit again",
    "sample later --out x.csv": rf"later/config\.json has format 7; .* reads format {FORMAT}: .* \(3\.1\)",
    "sample cut-model --out x.csv": r"cut-model/model\.safetensors is damaged \(.*\): restore it, or fit again",
    "sample no-model --out x.csv": r"no-model/model\.safetensors is missing: the run had not reached .*",
    "sample nan-model --out x.csv": r"nan-model/model\.safetensors holds weights that are NaN or infinite",
    "fit --resume folder": NO_RUN.format("folder"),
    "fit --resume python": "python was made in Python and does not name its data: .*",
    "fit --resume gone": r".*gone\.csv: no such file.*",
    "fit --resume changed": "changed was fitted to other data: resume it with the same rows and columns",
    "fit --resume cut-checkpoint": r"cut-checkpoint/checkpoint/state\.safetensors is damaged \(.*\): .*",
}

COMMANDS |= {
    "doctor folder": NO_RUN.format("folder"),
    "doctor nowhere table.csv": NO_RUN.format("nowhere"),
    "doctor python": "python was made in Python and does not name its data: .*",
    "doctor gone": r".*gone\.csv: no such file.*",
    "doctor run two.csv": r"two\.csv has no column 'width', which the run has; its columns are .*",
    "doctor run nan.csv": r"nan\.csv: missing values .*",
    "doctor cut-model table.csv": r"cut-model/model\.safetensors is damaged \(.*\): restore it, or fit again",
    "doctor later table.csv": r"later/config\.json has format 7; .*",
    "reflow folder --out out": NO_RUN.format("folder"),
    "reflow run --out run": "run is the run to begin with, which stays as it is: choose another folder",
    "reflow run --out folder": "folder is not empty: choose another folder, or pass --force .*",
    "reflow run --out file": "file is a file: choose another folder for the run",
    "reflow run --out file/run": r"file/run cannot be made: .*file is not a folder that may be written",
    "reflow run --out out --learning-rate 0": r"learning_rate must be positive; got 0\.0",
    "reflow run --out out --hidden 0": r"hidden must be one or more positive widths; got \(0,\)",
    "reflow run two.csv --out out": r"two\.csv has no column 'width', .*",
    "reflow nan-model --out out": "nan-model/model.safetensors holds weights that are NaN or infinite",
    "score run table.csv --error -1": r"error must be positive, in nats; got -1\.0",
    "score run table.csv --out x.xls": r"x\.xls: unknown extension '\.xls'; known: .*",
    "score run table.csv --out no/x.csv": r"no/x\.csv: no folder '.*no'; make it first",
    "score run table.csv --out table.csv": r"table\.csv exists: choose another name, or pass --force",
    "score run nan.csv": r"nan\.csv: missing values .*",
    "score run tabel.csv": r"tabel\.csv: no such file \(did you mean 'table\.csv'\?\)",
    "score nan-model table.csv": "nan-model/model.safetensors holds weights that are NaN or infinite",
    "score later table.csv": r"later/config\.json has format 7; .*",
    "score no-model table.csv": r"no-model/model\.safetensors is missing: .*",
    "plot folder --out p": NO_RUN.format("folder"),
    "plot run --context 1 --out p": "this run takes no context: leave --context out",
    "plot run --data two.csv --out p": r"two\.csv has no column 'width', .*",
    "plot conditional --context 1,2 --out p": r"--context must give 1 values \(age\), .*; got shape \(1, 2\)",
    "plot cut-model --out p": r"cut-model/model\.safetensors is damaged .*",
    "info later": r"later/config\.json has format 7; .*",
    "info cut-config": r"cut-config/config\.json is damaged .*",
    "info cut-checkpoint": r"cut-checkpoint/checkpoint/state\.safetensors is damaged .*",
    "sample run -n 1000000000000 --out x.csv": r"x\.csv: 1\d* rows take about 54 TB, .* left: .*",
    "fit --resume no-checkpoint": "no-checkpoint has a model but no checkpoint to go on from: use the model .*",
    "sample folder --out x.csv": NO_RUN.format("folder"),
    "sample conditional -n 3 --context tabel.csv --out x.csv": r"tabel\.csv: no such file.*",
}

USAGE = {
    "score run": "Missing argument 'DATA'",
    "plot run": "Missing option '--out'",
    "info": "Missing argument 'RUN'",
    "doctor": "Missing argument 'RUN'",
    "doctor run --rows 0": "0 is not in the range x>=1",
    "doctor run --seed -1": "-1 is not in the range",
    "reflow run": "Missing option '--out'",
    "reflow run --out out --pairs 1": "1 is not in the range x>=2",
    "reflow run --out out --steps 0": "0 is not in the range x>=1",
    "reflow run --out out --hidden a,b": "'a,b' is not a list of whole numbers such as 128,128",
    "sample run --out x.csv --steps 0": "0 is not in the range x>=1",
    "sample run --out x.csv --seed -1": "-1 is not in the range",
    "fit table.csv --out out --base cauchy": "'cauchy' is not one of 'auto', 'normal', 'mixture', 'student'",
    "fit table.csv --out out --rows many": "'many' is not a valid integer",
    "fit table.csv --out out --tolerance fine": "'fine' is not a valid float",
    "fit table.csv --out out --patience 1.5": "'1.5' is not a valid integer",
    "fit table.csv --out out --coupling ot": "'ot' is not one of 'auto', 'independent', ",
    "fit table.csv --out out --time-density late": "'late' is not one of 'auto', ",
    "fit table.csv --out out --scaling none2": "'none2' is not one of 'auto', ",
    "fit table.csv --out out --adjoint none": "'none' is not one of 'backprop', ",
    "fit table.csv --out out --hidden 8,x": "'8,x' is not a list of whole numbers such as 128,128",
    "fit table.csv --out out --solver rk5": "'rk5' is not one of 'dopri5', ",
    "fit table.csv --out out --depth 3": "No such option.*--depth",
    "fit --out out": r"fit needs DATA and --out RUN, or --resume RUN",
    "fit --resume run --hidden 5": "--resume takes its data and options from the run: leave out hidden",
    "fit table.csv --resume run": "--resume takes its data and options from the run: leave out source",
    "sample run -n 0 --out x.csv": "0 is not in the range x>=1",
    "sample run": "Missing option '--out'",
    "fly": "No such command 'fly'",
}

ZEROS = torch.zeros(4, 2)


def flow(layers=1, context=0):
    cnfs = [CNF(ResidualDynamics((2,), hidden=(4,), context_dim=context), (2,)) for _ in range(layers)]
    return Flow([part for cnf in cnfs for part in (cnf, Standardize.of(ZEROS))], context_dim=context)


def fit_with(name, value):
    if name in FFJORD().get_params():
        return FFJORD(**{**TINY, name: value}).fit(X, run="out")
    return ImageFFJORD(**{**TINY, name: value}).fit(np.zeros((4, 4, 4), np.uint8), run="out")


def fitted(**given):
    return FFJORD(**TINY).fit(X, **given)


PYTHON = {
    "rows of one axis": (lambda: fitted().fit(X[0]), "Expected 2D array, got 1D array instead"),
    "rows of three axes": (lambda: fitted().fit(X[None]), "use ImageFFJORD for images"),
    "rows of words": (lambda: fitted().fit([["a", "b"], ["c", "d"]]), "could not convert string to float|numeric"),
    "rows to score of another width": (lambda: fitted().score_samples(X[:, :2]), "X has 2 features, but FFJORD is exp"),
    "a model that was not fitted": (lambda: FFJORD().sample(3), "not fitted yet"),
    "no samples": (lambda: fitted().sample(0), "n_samples must be at least 1; got 0"),
    "a time after the data": (lambda: fitted().score_samples(X, time=1.5), r"times? must .*\[0, 1\].* got .*1\.5"),
    "no frames": (lambda: fitted().trajectory(3, frames=0), "frames must be at least .*; got 0"),
    "widths that are a number": (lambda: FFJORD(hidden=64).fit(X, run="out"), "hidden must be .*; got 64"),
    "a word that no menu has": (lambda: FFJORD(dynamics="cnn").fit(X, run="out"), "dynamics must be one of .*'cnn'"),
    "resuming nothing": (lambda: fitted(resume=True), "resume needs the run"),
    "resuming as another": (lambda: FFJORD().fit(X, run="python", resume=True), "python has .*: resume it with its"),
    "context of other rows": (lambda: fitted(context=X[:5]), r"context must have shape \(12, c\), .* got \(5, 3\)"),
    "context that holds NaN": (lambda: fitted(context=X * np.nan), "context contains NaN or infinity"),
    "context missing": (lambda: fitted(context=X).score_samples(X), r"context must have shape \(12, 3\); got None"),
    "context to spare": (lambda: fitted().score_samples(X, context=X), r"takes no context; got one of shape \(12, 3\)"),
    "context of another width": (lambda: fitted(context=X).sample(5, context=[1.0]), r"context must .* \(5, .* got"),
    "a coupling that no menu has": (lambda: FFJORD(coupling="ot").fit(X), "coupling must be one of indep.*; got 'ot'"),
    "a coupling unknown to matching": (lambda: FlowMatching(coupling="ot"), "coupling must be one of .*; got 'ot'"),
    "an unknown method": (lambda: make_solver("rk5"), "method must be one of dopri5, .*; got 'rk5'"),
    "fixed steps unsaid": (lambda: make_solver("euler"), "takes a fixed number of steps: pass steps >= 1; got None"),
    "a tolerance too fine": (lambda: flow().log_prob(ZEROS, solver=AdaptiveSolver(rtol=1e-9)), "finer than torch"),
    "no probes": (lambda: HutchinsonTrace(0), "probes must be at least 1; got 0"),
    "a flow of nothing": (lambda: Flow([]), "no transform knows its event_shape: pass base="),
    "events of another shape": (lambda: flow().log_prob(torch.zeros(4, 3)), r"shape \(batch >= 1, 2\); got \(4, 3\)"),
    "a flow's context missing": (lambda: flow(1, 1).sample(4), r"context must have shape \(4, 1\); got None"),
    "data on their bound": (lambda: Logit(ZEROS[0], ZEROS[0] + 1).to_base(ZEROS), "between the bounds; row 0, elem"),
    "data below their bound": (lambda: Softplus(ZEROS[0]).to_base(ZEROS - 1), "above the lower bound; row 0"),
    "continuous layers apart": (lambda: FlowMatching().loss(flow(2), Batch(ZEROS), None), "transforms side by side"),
    "a phase without an end": (lambda: Phase(FlowMatching(), np.inf), "not both infinite; got inf steps and inf sec"),
    "a phase of no time": (lambda: Phase(FlowMatching(), 5, seconds=0.0), "positive .*; got 5 steps and 0.0 seconds"),
    "nothing to train": (
        lambda: fit_flow(Flow([Standardize.of(ZEROS)]), ZEROS, schedule=[Phase(FlowMatching(), 1)]), "nothing to train",
    ),
    "a folder that holds something": (lambda: Run.create("folder", {}, force=True), "not empty and holds no run"),
}  # fmt: skip

KINDS = {
    "schedule": 5, "max_seconds": "long", "time_density": 1, "coupling": None, "dynamics": 3, "hidden": 64.0,
    "activation": 1, "fourier_features": 0.5, "input_scales": 2.0, "blocks": 1.5, "end_time": "1", "learn_end_time": 1,
    "transforms": "maf:1", "optimizer": 2,
    "scaling": None, "base": 2, "dequantize": True, "support": 1, "columns": 1,
    "learning_rate": "fast", "batch_size": 10.0,
    "mle_learning_rate": None, "weight_decay": "no", "warmup_steps": 1.5, "clip_norm": [1], "ema_decay": "x",
    "validation_fraction": "tenth", "validate_every": 2.5, "patience": None, "trace": 1, "probes": 2.0,
    "robust": "much",
    "regularizers": "kinetic", "steer": "a", "solver": 4, "train_tolerance": "1e-3", "solver_steps": 4.0,
    "adjoint": 1, "compile": True, "guard": None, "tolerance": "1e-5", "max_nfe": 1e4, "device": 0, "clock": 1,
    "density": 1, "watch": 2, "verbose": "yes", "subsets": 1, "missing": 999,
    "precision": 32, "micro_batches": 1.0, "bits": 5.0, "alpha": "1e-6", "scales": "2", "flip": "yes",
    "context_dropout": "some", "channels_last": 0.5,
}  # fmt: skip
PYTHON |= {
    f"{name}={value!r}": (
        lambda name=name, value=value: fit_with(name, value),
        f"{name} must be .*; got {re.escape(repr(value))}",
    )
    for name, value in KINDS.items()
}
PYTHON |= {
    "a seed that is none": (lambda: FFJORD(random_state=-1).fit(X, run="out"), "random_state must be a whole number"),
    "values whose squares overflow": (
        lambda: FFJORD(**TINY).fit(X * 1e160),
        "column 'x0' goes from .*: change its unit",
    ),
    "values that hardly differ": (lambda: FFJORD(**TINY).fit(X * 1e-160), "column 'x0' goes from .*: change its unit"),
    "columns named too few": (lambda: fitted(columns=["a"]), "columns must name 3 columns; got 1: a"),
    "infinite values": (lambda: FFJORD(**TINY).fit(np.where(X > 1, np.inf, X)), "infinity|infinite"),
    "no rows": (lambda: FFJORD(**TINY).fit(X[:0]), "0 sample"),
    "fixed steps of no method": (lambda: fitted().sample(3, steps=2, method="rk5"), "method must be one of"),
    "no degrees of freedom": (lambda: StudentT((2,), -1.0), "df must be positive"),
}


def test_every_field_is_tried_with_another_kind_and_the_table_is_long():
    assert set(KINDS) == {*FFJORD().get_params(), *ImageFFJORD().get_params()} - {"random_state"}
    assert len(ERRORS) + len(USAGE) + len(PYTHON) >= 200


ERRORS = {name: (f"fit {data} --out out", message) for name, (data, message) in DATA.items()}
ERRORS |= {option: (f"fit table.csv --out out {option}", message) for option, message in OPTIONS.items()}
ERRORS |= {line: (line, message) for line, message in COMMANDS.items()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_files()
        write_runs()
    return folder


@pytest.fixture
def here(prepared, tmp_path, monkeypatch):
    """A fresh copy of all files and runs, to work in."""
    folder = shutil.copytree(prepared, tmp_path / "here")
    monkeypatch.chdir(folder)
    return folder


def content(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ERRORS)
def test_a_bad_input_is_told_in_one_line_and_leaves_nothing(here, capfd, name):
    line, message = ERRORS[name]
    before = content(here)
    code, shown = command(line), capfd.readouterr()
    told = [text for text in shown.err.splitlines() if not text.startswith(("warning: ", "read "))]
    assert (code, shown.out, len(told)) == (1, "", 1), shown
    assert re.fullmatch(f"error: {message}", told[0]), told[0]
    assert content(here) == before


@pytest.mark.parametrize("line", USAGE)
def test_a_wrong_usage_is_explained_and_leaves_nothing(here, capfd, line):
    before = content(here)
    code, shown = command(line), capfd.readouterr()
    *usage, last = shown.err.splitlines()
    assert (code, shown.out, usage[0][:6]) == (2, "", "Usage:")
    assert "Traceback" not in shown.err
    assert re.search(f"^Error: .*{USAGE[line]}", last), last
    assert content(here) == before


@pytest.mark.parametrize("name", PYTHON)
def test_a_bad_argument_is_a_value_error_that_says_so_and_leaves_nothing(here, name):
    make, message = PYTHON[name]
    before = content(here)
    with pytest.raises(ValueError, match=message):
        make()
    assert content(here) == before
