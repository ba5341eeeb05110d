"""Models and trainings on disk: weights with their config, and the state to resume from.

Weights are safetensors, configs are JSON, and states are read with ``weights_only=True``: no code can hide in
them. What a model or a training is made of is not known here.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vqvae2.errors import UserError
from vqvae2.files import make_folder, plain, read_json, told_as, write_atomic, write_json
from vqvae2.version import __version__

FORMAT = 1  # of config.json and of the states; a reader refuses what is newer
_CONFIG = "config.json"
GUIDE = "guide"
"""Folder of a weaker model beside a model's weights: the same one, early in its training."""
_WEIGHTS = "model.safetensors"
_SCALE = "::scale"  # behind the name of a tensor of 8 bits
_ZIP_MAGIC = b"PK\x03\x04"
_PLAIN = (bool, int, float, str, type(None))

T = TypeVar("T")
_log = logging.getLogger(__name__)


def save_pretrained(
    folder: str | os.PathLike[str], config: Any, tensors: Mapping[str, Tensor], *, kind: str | None = None
) -> str:
    """Write a model's weights and config into a folder, each atomically.

    Args:
        folder: made when absent; what an earlier save left there is replaced.
        config: dict or dataclass, of JSON values; tuples become lists.
        tensors: parameters and buffers by name, as from ``state_dict()`` of the bare module.
        kind: ``"vqvae"`` or ``"prior"``; left out where the config has a field ``kind``.

    Returns:
        SHA-256 of ``model.safetensors``, 64 hex digits: equal weights give equal digits.

    Raises:
        UserError: the folder cannot be written.
        ValueError: no kind, or names that carry a wrapper's prefix (``module.``, ``_orig_mod.``).
    """
    fields = plain(config)
    kind = kind or fields.get("kind")
    if not kind:
        raise ValueError("save_pretrained needs a kind, as an argument or in the config")
    for name in tensors:
        if name.startswith("module.") or "_orig_mod." in name:
            raise ValueError(f"tensor {name!r} carries a wrapper's prefix: save the bare module's state_dict")
    record = {**fields, "format": FORMAT, "kind": kind, "version": __version__}
    folder = _own_folder(folder)
    if _stored_record(folder) != record:
        # Weights never lie beside the config of another model, wherever the process is killed.
        (folder / _CONFIG).unlink(missing_ok=True)
    # Each tensor gets storage of its own: safetensors refuses shared memory.
    own = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    blob = safetensors.torch.save(own)
    write_atomic(folder / _WEIGHTS, blob)
    write_json(folder / _CONFIG, record)
    return hashlib.sha256(blob).hexdigest()


def load_config(folder: str | os.PathLike[str], kind: str | None = None) -> dict[str, Any]:
    """Read a model's config.

    Args:
        folder: as written by :func:`save_pretrained`.
        kind: refuse a config of any other kind.

    Returns:
        All fields, with ``format``, ``kind`` and ``version`` among them.

    Raises:
        UserError: config missing, corrupt, of another kind, or written in a newer format.
    """
    path = Path(folder) / _CONFIG
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("format"), int) or "kind" not in config:
        raise UserError("this is not the config of a model", path, "Name the folder of a trained model")
    check_format(config["format"], path, config.get("version"))
    if kind is not None and config["kind"] != kind:
        raise UserError(f"this folder holds a {config['kind']}, not a {kind}", folder, "Name the other folder")
    return config


def load_tensors(folder: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a model's weights.

    Args:
        folder: as written by :func:`save_pretrained`.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        UserError: weights missing, truncated, or not safetensors (a pickle is never opened).
    """
    path = Path(folder) / _WEIGHTS
    if not path.is_file():
        raise UserError("there are no weights", path, "Train the model first")
    with told_as("the weights are damaged", path, "Train the model again", (SafetensorError, OSError)):
        stored = safetensors.torch.load_file(path)
    found = {}
    for name, tensor in stored.items():
        if not name.endswith(_SCALE):
            scale = stored.get(name + _SCALE)
            found[name] = tensor if scale is None else tensor.float() * scale
    return found


def in_eight_bits(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Store a tensor as integers of 8 bits and a scale for each row, which `load_tensors` multiplies again.

    Args:
        name: of the tensor.
        tensor: floats, of two dimensions or more.

    Returns:
        The integers and the scales by name.
    """
    scale = (tensor.float().flatten(1).abs().amax(1) / 127).clamp_min(1e-12).view(-1, *[1] * (tensor.ndim - 1))
    return {name: (tensor.float() / scale).round().to(torch.int8), name + _SCALE: scale}


def has_model(folder: str | os.PathLike[str]) -> bool:
    """Tell whether a folder holds a saved model."""
    return (Path(folder) / _CONFIG).is_file() and (Path(folder) / _WEIGHTS).is_file()


def load_weights(module: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Fill a module with a folder's weights.

    Raises:
        UserError: weights missing, damaged, or of another model than the config beside them.
    """
    with told_as("weights and config do not fit", folder, "Train the model again", (RuntimeError,)):
        module.load_state_dict(load_tensors(folder))


class Pretrained(nn.Module):
    """A model that is built from its config alone, and so is kept as config and weights.

    A subclass names its ``kind`` and the type of its config, which its constructor takes and keeps as ``config``.
    """

    kind: ClassVar[str]
    config_type: ClassVar[type]
    config: Any

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @contextmanager
    def in_evaluation_mode(self) -> Iterator[None]:
        """Run what is inside in evaluation mode; afterwards each part has its own mode back."""
        training = [part for part in self.modules() if part.training]
        self.eval()
        try:
            yield
        finally:
            for part in training:
                part.training = True

    def save_pretrained(self, folder: str | os.PathLike[str], origin: Mapping[str, Any] | None = None) -> str:
        """Write config.json and model.safetensors; return the SHA-256 of the weights file.

        Args:
            folder: made if absent.
            origin: what else is kept in config.json, such as the fingerprint of what it was trained on.
        """
        own = {field.name: getattr(self.config, field.name) for field in dataclasses.fields(self.config)}
        return save_pretrained(folder, {**own, **(origin or {})}, self.state_dict(), kind=self.kind)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> Self:
        """Rebuild a saved model in evaluation mode.

        Raises:
            UserError: the folder holds no model of this kind, or one that is damaged or from a newer version.
        """
        model = cls(config_from(cls.config_type, load_config(folder, kind=cls.kind), folder))
        load_weights(model, folder)
        return model.to(device).eval()


def config_from(cls: type[T], record: Mapping[str, Any], where: object) -> T:
    """Build a config dataclass from a JSON record: lists become tuples, keys of no field are left out.

    A field that the record lacks takes what the class's ``BEFORE`` says of records from before it, else its default.

    Raises:
        UserError: a field is missing that has no default, or a value is refused by the config.
    """
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    before = getattr(cls, "BEFORE", {}) if record else {}
    try:
        return cls(**{key: _tuples(value) for key, value in {**before, **record}.items() if key in names})
    except (TypeError, ValueError) as error:
        raise UserError(f"the config is not usable ({error})", where, "Mend it or train again") from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def sha256_of(folder: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a folder's ``model.safetensors``, 64 hex digits.

    Raises:
        UserError: weights missing or unreadable.
    """
    path = Path(folder) / _WEIGHTS
    with told_as("cannot read the weights", path, "Train the model first"), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_state(folder: str | os.PathLike[str], step: int, state: Mapping[str, Any], keep: int = 2) -> Path:
    """Write the state of a training atomically and keep the last few.

    States of later steps, left by a branch that was given up, are removed.

    Args:
        folder: the training's ``state`` folder, made when absent.
        step: >= 0, names the file.
        state: tensors, numbers, strings, None, and lists, tuples and dicts of these; the names ``step`` and
            ``format`` are reserved.
        keep: states left in the folder, >= 1.

    Returns:
        The file written.

    Raises:
        UserError: the folder cannot be written; the states already there are intact.
        ValueError: a value that ``weights_only=True`` could not read back, named by its place.
    """
    _check_loadable(state, "state")
    if not {"step", "format"}.isdisjoint(state):
        raise ValueError("state: the names 'step' and 'format' are reserved")
    folder = _own_folder(folder)
    path = folder / f"step-{step:010d}.pt"
    write_atomic(path, lambda file: _save({**state, "step": step, "format": FORMAT}, file))
    files = _states(folder)
    kept = [file for file in files if file <= path][-keep:]
    for file in set(files) - set(kept):
        file.unlink(missing_ok=True)
    return path


def _save(state: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # the end of torch's archive hides what broke it off
            raise error.__context__ from None
        raise


def has_state(folder: str | os.PathLike[str]) -> bool:
    """Tell whether a ``state`` folder holds anything to resume from."""
    return bool(_states(Path(folder)))


def newest_step(folder: str | os.PathLike[str]) -> int:
    """Return the step of the newest state in a ``state`` folder; 0 if there is none."""
    states = _states(Path(folder))
    return int(states[-1].stem.removeprefix("step-")) if states else 0


def load_state(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the newest whole state of a training; where the newest is cut short, the one before it.

    Args:
        folder: the training's ``state`` folder.

    Returns:
        What :func:`save_state` was given, and ``step``; tensors on the CPU.

    Raises:
        UserError: no state, none whole, a newer format, or a pickle that wants to run code.
    """
    files = _states(Path(folder))
    if not files:
        raise UserError("there is no state to resume from", folder, "Start without --resume")
    for path in reversed(files):
        state = _read_state(path)
        if state is not None:
            check_format(state.pop("format"), path)
            return state
        _log.warning("%s is damaged: falling back to the state before it", path)
    raise UserError("every saved state is damaged", folder, "Start again with --overwrite")


def check_format(found: int, path: object, version: str | None = None, supported: int = FORMAT) -> None:
    """Refuse a file that a newer version of this package wrote.

    Args:
        found: the format number stored in the file.
        path: the file, for the message.
        version: the package version that wrote it, for the message.
        supported: the newest format that this version reads.

    Raises:
        UserError: ``found`` is greater than ``supported``.
    """
    if found > supported:
        by = f" by vqvae2 {version}" if version else ""
        what = f"written{by} in format {found}, newer than the {supported} that this version reads"
        raise UserError(what, path, "Upgrade vqvae2")


def _stored_record(folder: Path) -> object:
    try:
        return json.loads((folder / _CONFIG).read_bytes())
    except (OSError, ValueError):
        return None


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"))


def _own_folder(folder: str | os.PathLike[str]) -> Path:
    # Only one process writes here: temporary files are those of one that was killed.
    for left in make_folder(folder).glob(".*.tmp"):
        left.unlink(missing_ok=True)
    return Path(folder)


def _check_loadable(value: Any, where: str) -> None:
    # Exact types: np.float64 is a float, and an OrderedDict subclass a dict, but weights_only refuses both.
    if type(value) in _PLAIN or isinstance(value, Tensor):
        return
    if type(value) in (list, tuple):
        for i, item in enumerate(value):
            _check_loadable(item, f"{where}[{i}]")
    elif type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_loadable(key, f"{where} key {key!r}")
            _check_loadable(item, f"{where}[{key!r}]")
    else:
        raise ValueError(f"{where} is a {type(value).__name__}, which weights_only=True cannot read back")


def _read_state(path: Path) -> dict[str, Any] | None:
    """The stored dict, None for a file cut short; a pickle that asks for more than tensors is refused."""
    refused = UserError("this file may run code, so it was not opened", path, "Delete it")
    with told_as("cannot read the state", path), open(path, "rb") as file:
        head = file.read(len(_ZIP_MAGIC))
    if not head.strip(b"\0") or (len(head) < len(_ZIP_MAGIC) and _ZIP_MAGIC.startswith(head)):
        return None
    if head != _ZIP_MAGIC:
        raise refused
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch.load itself does not look at the checksums
                return None
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise refused from error
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError):
        return None
    if not isinstance(state, dict) or not {"step", "format"} <= state.keys():
        raise refused
    return state
