"""A run folder: everything that a fit leaves, and everything that it needs to be resumed.

    config.json          the estimator's fields, facts about the data, the seed, the version of the format
    metrics.jsonl        log of training, one JSON record a line
    model.safetensors    best weights so far; they can be loaded at any moment
    checkpoint/          state.safetensors: the full state of training, to resume bit for bit
    samples/             sheets of sampled images during training
    steps/               log, model and checkpoint of the same flow in few explicit steps, which is trained after it

Every file but the log is replaced atomically, and none is ever unpickled.

A run that replaces another one is written to `.new` inside the folder. With its first model it takes the old one's
place: `.new` is renamed to `.whole`, from then on the new run is the one that is read, and its files are moved up.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ffjord_kit.atomic import flush, replacing, write_text
from ffjord_kit.nn.base import buffers_added_later
from ffjord_kit.run_folder import RunError, check_is_run, check_room, locate_run, refuse_pretrained
from ffjord_kit.version import __version__

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows, which has no locks of folders
    fcntl = None

FORMAT = 2
DAMAGE = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError)
FOLDERS = ("checkpoint", "samples", "steps")
CONTENT = ("metrics.jsonl", "model.safetensors", *FOLDERS, "config.json")
NEW, WHOLE = ".new", ".whole"  # a run that is to replace the one in the folder, before and after it has a model


def damaged(path: Path, reason: str) -> RunError:
    """Return the error of a file that makes no sense.

    Args:
        path: The file.
        reason: What is wrong with it.

    Returns:
        The error.
    """
    return RunError(f"{path} is damaged ({reason}): restore it, or fit again")


def unfit(path: Path, reason: str) -> RunError:
    """Return the error of weights and a config that belong to different models.

    Args:
        path: Run folder.
        reason: What does not fit.

    Returns:
        The error.
    """
    return RunError(
        f"{path / 'model.safetensors'} does not fit config.json ({reason}): one of them is damaged or of an "
        "earlier version: restore it, or fit again"
    )


def to_json(content: Mapping[str, Any]) -> str:
    """Return plain values and NumPy's numbers as JSON.

    Args:
        content: Values by name.

    Returns:
        The text.

    Raises:
        TypeError: If a value is of another type.
    """
    return json.dumps(content, indent=2, default=_number)


def finite_or_none(value: float) -> float | None:
    """Return a number as JSON can hold it.

    Args:
        value: The number.

    Returns:
        The number; None if it is not finite.
    """
    return value if math.isfinite(value) else None


def number_or_infinity(value: Any) -> float:
    """Return a number that JSON held.

    Args:
        value: A number, or None for one that was not finite.

    Returns:
        The number; infinity for None.

    Raises:
        TypeError, ValueError: If it is no number.
    """
    return math.inf if value is None else float(value)


@dataclass(frozen=True)
class Run:
    """One run folder.

    Args:
        path: Path of the folder.
        replaces: Whether the run is to replace the one that is there, which stays until `save_model`.
        part: Folder of the log, the model and the checkpoint within the run; empty for the run itself.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Run.create(Path(folder) / "run", {"seed": 3}).config["seed"]
        3
    """

    path: Path
    replaces: bool = False
    part: str = ""

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any], *, force: bool = False) -> Run:
        """Make a run folder.

        Args:
            path: Path of the folder.
            config: Content of config.json.
            force: Whether to replace a run that is there, once the new one has a model; other content stays.

        Returns:
            The run.

        Raises:
            RunError: If the folder holds something.
        """
        run, text = cls(Path(path), replaces=force), to_json({"format": FORMAT, "version": __version__, **config})
        try:
            run._make_room(force)
            run._write("config.json", text)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open an existing run.

        Args:
            path: Path of the folder, or pretrained:NAME for a run that comes with the package.

        Returns:
            The run.

        Raises:
            RunError: If its config cannot be read.
        """
        check_is_run(path)
        run = cls(locate_run(path))
        run.config  # noqa: B018  reads and checks it
        return run

    def file(self, name: str) -> Path:
        """Return where a file of the run is.

        Args:
            name: Its name in the folder, e.g. "checkpoint/state.safetensors".

        Returns:
            The path.
        """
        name = f"{self.part}/{name}" if self.part and name != "config.json" else name
        if (self.path / WHOLE / name.split("/")[0]).exists():
            return self.path / WHOLE / name
        new = self.path / NEW
        return new / name if self.replaces and new.is_dir() else self.path / name

    def within(self, part: str) -> Run:
        """Return a part of the run, which has a log, a model and a checkpoint of its own.

        Args:
            part: Name of its folder, one of FOLDERS.

        Returns:
            The part; it shares the config.
        """
        return replace(self, part=part)

    @property
    def has_model(self) -> bool:
        """Whether there are weights."""
        return self.file("model.safetensors").exists()

    def tidy(self) -> None:
        """Remove what a killed process had begun to write, and end what it had begun to move (under the lock)."""
        _remove(self.path / NEW)
        if (self.path / WHOLE).is_dir():
            self._move_up()
        self._sweep()

    def close(self) -> None:
        """Remove what was to replace the run that is there, if it had no model yet."""
        if self.replaces and (self.path / NEW).is_dir():
            _remove(self.path / NEW)

    @property
    def config(self) -> dict[str, Any]:
        """Content of config.json; a RunError says where it is missing, damaged, or of another version."""
        config = self._json(self.file("config.json"))
        found = config.get("format")
        if type(found) is not int or found < 1:
            raise damaged(self.path / "config.json", f"format must be {FORMAT}; got {found!r:.40}")
        if found != FORMAT:
            raise RunError(
                f"{self.path / 'config.json'} has format {found!r}; ffjord_kit {__version__} reads format {FORMAT}: "
                f"use the version that wrote it ({config.get('version', 'unknown')})"
            )
        return config

    def amend(self, **content: Any) -> dict[str, Any]:
        """Add entries to the config.

        Args:
            **content: Entries by name.

        Returns:
            The new config.
        """
        config = {**self.config, **content}
        self._write("config.json", to_json(config))
        return config

    def record(self, record: Mapping[str, Any]) -> None:
        """Append a record to the log.

        Args:
            record: Record of plain values.

        Raises:
            RunError: If it cannot be written.
        """
        log = self.file("metrics.jsonl")
        log.parent.mkdir(parents=True, exist_ok=True)
        with self._writing(log), open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """Read the log; a last line cut short by a crash is left out.

        Returns:
            The records.
        """
        log = self.file("metrics.jsonl")
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        return [record for record in map(_parsed, lines) if record is not None]

    def keep_records(self, count: int) -> None:
        """Keep the first records, for a resumed run makes the others again; half-written files are removed.

        Args:
            count: Number of records to keep.
        """
        self._sweep()
        kept = [json.dumps(record) + "\n" for record in self.records()[:count]]
        self._write("metrics.jsonl", "".join(kept))

    def save_model(self, flow: nn.Module) -> None:
        """Write the weights; a run that is to replace another one takes its place.

        Args:
            flow: Model that has them.

        Raises:
            RunError: If they cannot be written.
        """
        self._save("model.safetensors", flow.state_dict(), {})
        if not self.part and self.replaces and (self.path / NEW).is_dir():
            self._take_place()

    def load_model(self, flow: nn.Module) -> None:
        """Read the weights into a model.

        Args:
            flow: Model of the same shapes; it stays as it was if the weights are refused.

        Raises:
            RunError: If they are missing, damaged, or of other shapes.
        """
        tensors, _ = self._load("model.safetensors")
        tensors = {**buffers_added_later(flow), **tensors}
        expected = {name: tuple(value.shape) for name, value in flow.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in tensors.items()}
        if expected != found:
            odd = sorted(set(expected.items()) ^ set(found.items()))[0][0]
            raise unfit(self.path, f"first at {odd!r}")
        for name, value in flow.state_dict().items():
            _check_type(self.path / "model.safetensors", name, tensors[name], value)
        if not all(bool(value.isfinite().all()) for value in tensors.values() if value.is_floating_point()):
            raise RunError(f"{self.file('model.safetensors')} holds weights that are NaN or infinite")
        flow.load_state_dict(tensors)

    def save_checkpoint(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write the full state of training, in one file, so that it is whole or absent.

        Args:
            tensors: Tensors by name.
            state: Plain values by name.

        Raises:
            RunError: If it cannot be written.
        """
        self._save("checkpoint/state.safetensors", tensors, {"state": json.dumps(state)})

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a state to resume from."""
        return self.file("checkpoint/state.safetensors").exists()

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Read the last full state of training.

        Returns:
            Tensors and plain values by name; None if the run had not reached a checkpoint.

        Raises:
            RunError: If it is damaged.
        """
        if not self.has_checkpoint:
            return None
        tensors, metadata = self._load("checkpoint/state.safetensors")
        state = _parsed(metadata.get("state", ""))
        if state is None:
            raise damaged(self.path / "checkpoint/state.safetensors", "no state")
        return tensors, state

    def model_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the weights, without reading these.

        Returns:
            Shapes by name.

        Raises:
            RunError: If the weights are missing or damaged.
        """
        with self._opened("model.safetensors") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118

    @contextmanager
    def explained(self, name: str) -> Iterator[None]:
        """Turn whatever the content of a file leads to into one line that says that it is damaged.

        Args:
            name: Name of the file in the folder.

        Yields:
            Nothing.

        Raises:
            RunError: In place of errors of a damaged content.
        """
        try:
            yield
        except RunError:
            raise
        except DAMAGE as error:
            reason = " ".join(repr(error).split())[:200]
            raise damaged(self.path / name, reason) from error

    def _write(self, name: str, text: str) -> None:
        path = self.file(name)
        with self._writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)

    def _save(self, name: str, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
        flat = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        path = self.file(name)
        with self._writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                save_file(flat, temporary, metadata)

    def _load(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        with self._opened(name) as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118

    @contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        path = self.file(name)
        if not path.is_file():
            raise RunError(
                f"{path} is missing: the run had not reached its first checkpoint, or lost it: resume it, or fit again"
            )
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except (SafetensorError, OSError, RuntimeError) as error:
            raise damaged(path, _one_line(error)) from error

    def _json(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{self.path} is no run folder: it has no config.json") from None
        except (OSError, ValueError, RecursionError) as error:
            raise damaged(path, _one_line(error)) from error
        if not isinstance(content, dict):
            raise damaged(path, "not a JSON object")
        return content

    def _make_room(self, force: bool) -> None:
        check_room(self.path, force=force)
        self.path.mkdir(parents=True, exist_ok=True)
        self.tidy()
        if any(self.file(name).exists() for name in ("model.safetensors", "checkpoint/state.safetensors")):
            (self.path / NEW).mkdir()
        else:
            self._clear()

    def _clear(self) -> None:
        """Remove a run without a model; its config stays until the new one takes its place."""
        for name in CONTENT:
            if name != "config.json":
                _remove(self.path / name)

    def _take_place(self) -> None:
        """Replace the run that is there. Each part is there, if an empty one, lest the old one is read in its place."""
        for name in FOLDERS:
            (self.path / NEW / name).mkdir(exist_ok=True)
        (self.path / NEW / "metrics.jsonl").touch()
        os.rename(self.path / NEW, self.path / WHOLE)
        flush(self.path)
        self._move_up()

    def _move_up(self) -> None:
        """Move the files of `.whole` to the places of the old ones; a second call goes on where a first one ended."""
        for name in CONTENT:
            source, target = self.path / WHOLE / name, self.path / name
            if source.exists():
                if target.is_dir():
                    _remove(target)
                os.replace(source, target)
        _remove(self.path / WHOLE)
        for name in FOLDERS:
            if (self.path / name).is_dir() and not any((self.path / name).iterdir()):
                _remove(self.path / name)

    def _sweep(self) -> None:
        """Remove half-written files."""
        for name in ("config.json", "metrics.jsonl", "model.safetensors", "checkpoint/state.safetensors"):
            path = self.file(name)
            for leftover in path.parent.glob(f".{path.stem}-*"):
                leftover.unlink(missing_ok=True)

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """Say which file could not be written, and that its last version is intact."""
        try:
            yield
        except (SafetensorError, OSError) as error:
            advice = "fit again" if NEW in path.parts else "resume"
            raise RunError(
                f"{path} could not be written ({_one_line(error)}): what was there before is intact; "
                f"make room, and {advice}"
            ) from error


@contextmanager
def claimed(path: str | Path | None) -> Iterator[None]:
    """Make a run folder, and lock it against other processes meanwhile; the lock ends with its process.

    Systems and file systems without such locks keep nobody out.

    Args:
        path: Path of the folder; None for no folder.

    Yields:
        Nothing.

    Raises:
        RunError: If another process holds the lock, or the run is one of the package.
    """
    refuse_pretrained(path)
    handle = _folder_handle(path)
    try:
        if handle is not None:
            _lock(handle, str(path))
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _folder_handle(path: str | Path | None) -> int | None:
    if path is None or fcntl is None:
        return None
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDONLY)
    except OSError:  # those who want to write there say it
        return None


def _lock(handle: int, path: str) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(f"another process is at work in {path}: wait for it, or choose another folder") from None
    except OSError:  # a file system without locks
        return


def _check_type(path: Path, name: str, found: Tensor, expected: Tensor) -> None:
    """Refuse a tensor of another type; floats may be of either length, as a model reports in float64."""
    floats = expected.is_floating_point() and found.dtype in (torch.float32, torch.float64)
    if not floats and found.dtype != expected.dtype:
        kinds = f"{expected.dtype}; got {found.dtype}".replace("torch.", "")
        raise damaged(path, f"{name!r} must be {kinds}")


def _number(value: object) -> int | float:
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"a run's config holds text, numbers and lists of them; got {type(value).__name__}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():  # what a link leads to is left alone
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
