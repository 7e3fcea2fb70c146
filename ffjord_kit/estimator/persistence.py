"""Fitted models in run folders: what config.json records, what can be resumed, and how weights come back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import torch

from ffjord_kit.columns.types import read_types, types_as_text
from ffjord_kit.diagnostics.measurement import NOISE
from ffjord_kit.display import html_table
from ffjord_kit.estimator.config import Config, blank_flow, find_device, report_dtype, resolve
from ffjord_kit.estimator.data import seed_from
from ffjord_kit.estimator.discretize import NOISE_REMOVED, SteppedNote, stepped
from ffjord_kit.estimator.domain import Domain
from ffjord_kit.estimator.fields import (
    OPEN,
    CommonFields,
    ImageFields,
    TableFields,
    check_kinds,
    kind_of,
    whole,
)  # fmt: skip
from ffjord_kit.estimator.image import ImageDomain
from ffjord_kit.estimator.tables.choice import stored_table_domain
from ffjord_kit.estimator.tables.own import is_own, named, with_objects
from ffjord_kit.flow import Flow
from ffjord_kit.run import Run, RunError, claimed, damaged, to_json, unfit
from ffjord_kit.training import History, Workers
from ffjord_kit.training.history import of_density
from ffjord_kit.training.reflow import with_alignment
from ffjord_kit.transforms import CNF, Affine, Transform

COLUMNS_SHOWN = 8
FREE_ON_RESUME = ("verbose", "device", "random_state")
FACTS: dict[str, type] = {
    "version": str, "sha256": str, "estimator": dict, "data": dict, "columns": list, "seed": int, "rows": int,
    "context_dim": int,
}  # fmt: skip
SEQUENCES = ("schedule", "transforms", "support")  # fields whose entries are tuples


@dataclass(frozen=True)
class StoredModel:
    """A model as a run keeps it.

    Attributes:
        flow: Flow, where and in the type in which it reports.
        config: Configuration.
        domain: Domain of the data.
        record: Content of config.json.
        history: History of the fit.
        steps: Flow in few explicit steps, in the precision of training; None where there is none.
    """

    flow: Flow
    config: Config
    domain: Domain
    record: dict[str, Any]
    history: History
    steps: Flow | None = None

    @property
    def note(self) -> SteppedNote | None:
        """The note of the flow in few steps; None where there is none."""
        return None if self.steps is None else SteppedNote.of_record(self.record["steps"])

    @property
    def density(self) -> str:
        """Word of DENSITIES: the density that reports."""
        wanted = self.config.fields.density
        if wanted == "steps" and self.steps is None:
            raise ValueError("this model has no density of few steps: discretize it first, or pass density='auto'")
        return (self.note.density if self.note else "continuous") if wanted == "auto" else wanted

    @property
    def reporting_flow(self) -> Flow:
        """Flow whose density reports."""
        return self.steps if self.density == "steps" and self.steps is not None else self.flow

    def summary(self) -> dict[str, str]:
        """Describe the model in a few lines.

        Returns:
            Texts by name: the data, the density that reports, its held-out NLL, and its receipt.
        """
        note, nll = self.note, self._held_out_nll()
        return {
            "data": f"{self.record['rows']} {self._events()}",
            "density": self._density_in_words(),
            **({} if nll is None else {"held-out NLL": nll}),
            **({} if note is None else {"receipt": str(note.receipt)}),
        }

    def _density_in_words(self) -> str:
        if not self.domain.size:
            return "of categories alone: exact probabilities"
        return f"of {self.note.scheme}" if self.note and self.density == "steps" else "of the continuous flow"

    def _events(self) -> str:
        """Return the columns of the rows, or the shape of the images."""
        columns = self.record["columns"]
        if not columns:
            return f"images of {' x '.join(map(str, self.domain.event_shape))}"
        more = f", ... {len(columns)} in all" if len(columns) > COLUMNS_SHOWN else ""
        return f"rows of {', '.join(columns[:COLUMNS_SHOWN])}{more}"

    def _held_out_nll(self) -> str | None:
        """Return the best validation of the density that reports; None where none was made."""
        records = of_density(self.history.records, self.density)
        validations = [record for record in records if "validation_nll" in record]
        if not validations:
            return None
        best = min(validations, key=lambda record: record["validation_nll"])
        nll, error = best["validation_nll"], best["validation_standard_error"]
        return f"{nll:.4f} ± {error:.4f} nats (± is over rows, not over fits)"

    def _repr_html_(self) -> str:
        return html_table("Fitted model", self.summary())


def new_record(
    fields: CommonFields, path: str | Path | None, about: Mapping[str, Any], *, resume: bool
) -> dict[str, Any]:
    """Return the content of config.json for a fit: of a new run, or of the one to resume.

    Args:
        fields: Fields of the estimator.
        path: Run folder, or None.
        about: Facts about the data.
        resume: Whether the run goes on.

    Returns:
        The content, with the seed settled.

    Raises:
        ValueError: If there is no run to resume.
        RunError: If the run has other fields or data, or is damaged.
    """
    params = named(field_values(fields))
    if not resume:
        seed = seed_from(params["random_state"])
        return {"estimator": {**params, "random_state": seed}, "seed": seed, **about}
    if path is None:
        raise ValueError("resume needs the run to go on with: pass run=")
    run = Run.open(path)
    with run.explained("config.json"):
        read_fields(run)
        check_resumable(run, params, about)
    return run.config


def check_resumable(run: Run, params: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Check that a run has the same data and fields, but for those that say where and how loudly to work.

    Args:
        run: Run to resume.
        params: Fields by name.
        about: Facts about the data.

    Raises:
        RunError: If something differs; it names the first difference.
    """
    record = run.config
    if "reflow" in record:
        raise RunError(f"{run.path} was made by reflow, not fitted: it has no steps left to make; reflow the fit again")
    if run.file("model.safetensors").exists() and not run.has_checkpoint:
        raise RunError(
            f"{run.path} has a model but no checkpoint to go on from: use the model as it is, or fit again with force"
        )
    if record["sha256"] != about["sha256"]:
        raise RunError(f"{run.path} was fitted to other data: resume it with the same rows and columns")
    name, mine, its = next(_differences(record, params), ("", None, None))
    if name:
        raise RunError(f"{run.path} has {name}={its!r}; got {mine!r}: resume it with its own")


def same_fields(run: Run, params: Mapping[str, Any]) -> bool:
    """Say whether a run has the same fields, and their seed if one is given.

    Args:
        run: The run.
        params: Fields by name.

    Returns:
        True if it has.
    """
    record, seed = run.config, params["random_state"]
    return not any(_differences(record, params)) and seed in (None, record["seed"])


def check_workers(workers: Workers, params: Mapping[str, Any], about: Mapping[str, Any], *, resume: bool) -> None:
    """Check that all workers have the same fields and data.

    Args:
        workers: The workers.
        params: Fields by name.
        about: Facts about the data.
        resume: Whether the fit goes on.

    Raises:
        WorkersError: On all of them, if something differs.
    """
    free = {name for name in FREE_ON_RESUME if name != "random_state"}
    compared = {name: value for name, value in params.items() if name not in free}
    data = {"number of rows": about["rows"], "columns": about["columns"], "data (SHA-256)": about["sha256"]}
    workers.check_equal({**compared, **data, "resume": resume})


@contextmanager
def run_folder(
    workers: Workers, path: str | Path | None, record: Mapping[str, Any], *, force: bool, resume: bool
) -> Iterator[Run | None]:
    """Make or open a run folder, and keep other processes out of it meanwhile.

    Args:
        workers: The workers; the first one alone gets the run.
        path: Folder, or None for no run.
        record: Content of config.json of a new run.
        force: Whether to replace a run that is there.
        resume: Whether to open the run that is there.

    Yields:
        The run, or None.
    """
    with ExitStack() as stack:

        def opened() -> Run | None:
            stack.enter_context(claimed(path))
            if path is None:
                return None
            if resume:
                run = Run.open(path)
                run.tidy()
                return run
            run = Run.create(path, record, force=force)
            if workers.size == 1:  # workers that torchrun starts again see by it that the run there is not theirs yet
                stack.callback(run.close)
            return run

        yield workers.run_on_first(opened)


def check_record(run: Run) -> None:
    """Check what a run records of its fit: the facts about the data, the fields, and the domain.

    Args:
        run: The run.

    Raises:
        RunError: If config.json lacks something, or makes no sense.
    """
    if run.config.get("model") == "latent_ode":
        raise RunError(f"{run.path} is a run of series: use ffjord-kit series predict or plot")
    with run.explained("config.json"):
        record = run.config
        for name, kind in FACTS.items():
            check_entry(record, name, kind)
        if "steps" in record:
            check_entry(record, "steps", dict)
        whole("rows", record["rows"])
        seed_from(record["seed"])
        for note in record.get("reflow", []):
            check_entry(note, "weights", str)
        check_kinds(replace(read_fields(run), **record.get("chosen", {})))
    read_domain(run, read_fields(run))


def check_entry(record: Mapping[str, Any], name: str, *kinds: type) -> None:
    """Check the type of an entry that JSON held, and that the entries of a list are text.

    Args:
        record: Entries by name.
        name: Name of the entry.
        kinds: Types that it may have.

    Raises:
        KeyError: If there is no such entry.
        ValueError: If it has another type.
    """
    value = record[name]
    if type(value) not in kinds or (isinstance(value, list) and not all(isinstance(entry, str) for entry in value)):
        raise ValueError(f"{name} must be {' or '.join(kind.__name__ for kind in kinds)}; got {value!r:.40}")


def read_fields(run: Run) -> TableFields | ImageFields:
    """Return the fields of a run.

    Args:
        run: The run.

    Returns:
        Fields of a table, or of images.

    Raises:
        RunError: If they are not an estimator's.
    """
    with run.explained("config.json"):
        fields = fields_of_record(run.config)
        check_kinds(fields)
        if isinstance(fields, TableFields):
            read_types(fields.columns)
        return fields


def fields_of_record(record: Mapping[str, Any]) -> TableFields | ImageFields:
    """Return the fields of a run's record, with tuples where JSON has made lists of them.

    Args:
        record: Content of config.json.

    Returns:
        Fields of a table, or of images.
    """
    kind = ImageFields if "images" in record else TableFields
    return kind(**{name: _restored(name, value) for name, value in record["estimator"].items()})


def read_domain(run: Run, fields: TableFields | ImageFields) -> Domain:
    """Return the domain of a run.

    Args:
        run: The run.
        fields: Its fields.

    Returns:
        The domain.

    Raises:
        RunError: If its record makes no sense.
    """
    with run.explained("config.json"):
        if isinstance(fields, ImageFields):
            return ImageDomain.from_record(fields, run.config)
        return stored_table_domain(fields, run.config)


def load_model(run: Run, **own: Any) -> StoredModel:
    """Load the fitted model of a run.

    Args:
        run: The run.
        **own: Objects of the user's own that it was fitted with, `dynamics` and `base`; None for none.

    Returns:
        The model, on the device that its fields name here.

    Raises:
        RunError: If the run is damaged, or has no weights yet.
        ValueError: If this machine does not have the device, or an object of the user's own is lacking.
    """
    check_record(run)
    record, fields = run.config, with_objects(read_fields(run), own, str(run.path))
    domain = read_domain(run, fields)
    find_device(fields.device)  # its error does not mean that the run is damaged
    if NOISE in record and NOISE_REMOVED not in record:
        raise RunError(f"{run.path} was interrupted before the measurement errors were removed: fit again with force")
    with run.explained("config.json"):
        seed, context_dim = record["seed"], record["context_dim"]
        whole("context_dim + 1", context_dim + 1)
        config = resolve(fields, domain, seed=seed, chosen=record.get("chosen", {}))
        context_dim += domain.code_dim
    _check_size(run, config, domain, context_dim)
    with run.explained("config.json"):
        flow = blank_flow(config, domain, context_dim, seed)
        for note in record.get("reflow", []):
            grading = note.get("grading", 1.0)
            if not 0 < grading < math.inf:
                raise ValueError(f"grading must be positive; got {grading}")
            flow = with_alignment(flow, blank_alignment(domain)) if "aligned" in note else flow
    run.load_model(flow)
    _check_transforms(run, flow)
    steps = _load_steps(run, flow, config.device)
    prepare_reports(flow, config, domain)
    records = last_part(run).records()
    with run.explained("metrics.jsonl"):
        history = History(seed, step=records[-1]["step"] if records else 0, records=records)
    return StoredModel(flow, config, domain, record, history, steps)


def save_model(path: str | Path, model: StoredModel, *, force: bool) -> None:
    """Write a model as a run folder.

    Args:
        path: Folder.
        model: The model.
        force: Whether to replace a run that is there.

    Raises:
        RunError: If the folder cannot be used.
    """
    with claimed(path), closing(Run.create(path, model.record, force=force)) as run:
        for entry in model.history.records:
            run.record(entry)
        if model.steps is not None:
            run.within("steps").save_model(model.steps)
        run.save_model(model.flow)


def last_part(run: Run) -> Run:
    """Return the part of a run that was trained last, whose log goes on from the others'.

    Args:
        run: The run.

    Returns:
        The part in few steps if it has a log, else the run itself.
    """
    steps = run.within("steps")
    return steps if steps.file("metrics.jsonl").exists() else run


def _load_steps(run: Run, flow: Flow, device: torch.device) -> Flow | None:
    """Return the flow in few steps, which counts once the fit has ended and it has its receipt."""
    if "receipt" not in run.config.get("steps", {}):
        return None
    with run.explained("config.json"):
        steps = stepped(flow, SteppedNote.of_record(run.config["steps"]).scheme)
    run.within("steps").load_model(steps)
    return steps.to(device).requires_grad_(False)


def prepare_reports(flow: Flow, config: Config, domain: Domain) -> None:
    """Freeze a flow, and give it the type and the solver of reports; the type of images stays as it was trained.

    Args:
        flow: The flow.
        config: Configuration.
        domain: Domain of the data.
    """
    dtype = report_dtype(config.device) if domain.dtype is torch.float64 else flow.like.dtype
    flow.to(device=config.device, dtype=dtype).requires_grad_(False)
    for transform in flow.modules():
        if isinstance(transform, CNF) and config.reporting.solver is not None:
            transform.solver = config.reporting.solver


def blank_alignment(domain: Domain) -> Affine:
    """Return the affine transform of a reflow before any data, to load weights into.

    Args:
        domain: Domain of the data.

    Returns:
        The transform.
    """
    shapes = (domain.event_shape, (domain.size, domain.size))
    return Affine(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))


def field_values(fields: CommonFields) -> dict[str, Any]:
    """Return the values of all fields, types of columns as text.

    Args:
        fields: Fields, or an estimator.

    Returns:
        Values by name.
    """
    values = {each.name: getattr(fields, each.name) for each in fields_of(kind_of(fields))}
    return {**values, "columns": types_as_text(values["columns"])} if "columns" in values else values


def _differences(record: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the fields that a run has otherwise: name, given value, and the run's.

    A field that is left open now may be what it would have become.
    """
    mine, its = json.loads(to_json(params)), record["estimator"]
    usual = json.loads(to_json(_usual(record, params)))
    for name, value in mine.items():
        as_usual = value in OPEN and its.get(name) == usual.get(name)
        if name not in FREE_ON_RESUME and value != its.get(name) and not as_usual:
            yield name, value, its.get(name)


def _usual(record: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of open fields for a run's data."""
    if "images" in record:
        return ImageDomain.from_record(ImageFields(**params), record).defaults()
    return stored_table_domain(replace(TableFields(**params), support="real"), record).defaults()


def _restored(name: str, value: Any) -> Any:
    """Return a field as it was before JSON made lists of its tuples."""
    if name == "hidden" and isinstance(value, list):
        return tuple(value)
    if name in SEQUENCES and isinstance(value, list):
        entries = [tuple(entry) if isinstance(entry, list) else entry for entry in value]
        return tuple(entries) if entries[:1] == ["bounded"] else entries
    return value


def _check_transforms(run: Run, flow: Flow) -> None:
    """Refuse fitted values that make no invertible map, e.g. a scale of 0."""
    for name, transform in flow.named_modules():
        flaw = transform.flaw() if isinstance(transform, Transform) else ""
        if flaw:
            raise damaged(run.path / "model.safetensors", f"{name}: {flaw}")


def _check_size(run: Run, config: Config, domain: Domain, context_dim: int) -> None:
    """Refuse a config that describes a larger flow than the weights are, before any of it is built."""
    if is_own(config.fields.dynamics):
        return  # its size is not in config.json
    shapes = run.model_shapes()
    count, elements = len(shapes), sum(math.prod(shape) for shape in shapes.values())
    fields = config.fields
    with run.explained("config.json"):
        hidden = tuple(map(int, fields.hidden or ()))
        octaves = fields.fourier_features or 0 if isinstance(fields, TableFields) else 0
        widest = domain.largest_weight(hidden, 1 + 2 * octaves, context_dim)
        deepest = max(fields.blocks * domain.depth_factor, len(hidden), sum(number for _, number in config.transforms))
    if deepest > count or max(widest, domain.size) > elements:
        raise unfit(run.path, "it is smaller than that says")
