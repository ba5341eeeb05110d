"""What the stages share: the run folder, locks, and the checks that parts of a run belong together."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vqvae2 import checkpoint, distributed, files
from vqvae2.codes import CodeStore
from vqvae2.data.decoding import SUFFIXES
from vqvae2.data.pools import cores
from vqvae2.device import DeviceChoice, PrecisionChoice, forbid_tf32, resolve_device, resolve_precision
from vqvae2.errors import UserError
from vqvae2.optim import TrainingConfig
from vqvae2.stages.commands import command, flags_of
from vqvae2.stages.flags import CommandLine
from vqvae2.training import Outcome
from vqvae2.version import __version__
from vqvae2.vqvae import VQVAEConfig

_PLACES = ("run", "level", "out")  # flags that say where a result lies, as its folder does
_LIMITS = ("max_minutes", "max_steps")
_ONCE = ("resume", "overwrite", "dry_run")  # flags that say nothing of how a result was made


@dataclass(frozen=True)
class Compute:
    """Device, precision, seed and data loading."""

    device: DeviceChoice = "auto"
    """Device; auto: CUDA, else MPS, else the CPU."""
    precision: PrecisionChoice = "auto"
    """Precision of matrix products. In training, auto is bf16 if the hardware is fast at it, else fp32; fp16, with
    scaled gradients, is for GPUs that have no bf16. Extraction and sampling use fp32 unless bf16 is given; evaluation
    uses fp32, and for anomaly maps what training would."""
    seed: int = 0
    """Seed of all random numbers, >= 0."""
    num_workers: int | None = None
    """Processes that load training batches; 0: the main process loads them. Default: 0, or, where the disk has no room
    for decoded images, the cores of the machine divided by its processes, at most 8."""

    def resolve(self, training: bool = False) -> tuple[torch.device, torch.dtype]:
        """Return the device and the precision; in every stage fp32 then means float32, and never TF32."""
        if self.precision == "fp16" and not training:
            raise UserError("--precision fp16 is for training", how="Give fp32 or bf16")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed {self.seed} is out of range", how=f"Give 0 to {2**32 - 1}")
        if self.num_workers is not None and self.num_workers < 0:
            raise UserError(f"--num-workers {self.num_workers} is negative", how="Give 0 or more")
        forbid_tf32()
        device = distributed.local_device(resolve_device(self.device))
        if self.precision == "fp16" and device.type == "cpu":
            raise UserError("--precision fp16 is for GPUs", how="Give fp32 or bf16")
        return device, resolve_precision(self.precision, device)

    def workers(self, decoding: bool) -> int:
        """Return the number of processes that load batches, which do much where they decode images."""
        if self.num_workers is not None or not decoding:
            return self.num_workers or 0
        return min(8, max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)))


def refuse_torchrun(what: str) -> None:
    """Refuse several processes for what one does."""
    if distributed.world_size() > 1:
        raise UserError(f"{what} runs in one process", "torchrun", "Start it without torchrun")


@dataclass(frozen=True)
class RunFolder:
    """The run folder, which all stages share, and its run.json."""

    path: Path

    @property
    def data_report(self) -> Path:
        """Folder of the data report."""
        return self.path / "data-report"

    @property
    def vqvae(self) -> Path:
        """Folder of the VQ-VAE."""
        return self.path / "vqvae"

    @property
    def detail(self) -> Path:
        """Folder of the decoder that paints images from the coarse levels."""
        return self.vqvae / "detail"

    @property
    def codes(self) -> Path:
        """The code store."""
        return self.path / "codes"

    @property
    def value_range(self) -> tuple[float, float]:
        """Stored values of black and white of its images, as its VQ-VAE knows them."""
        low, high = checkpoint.load_config(self.vqvae, kind="vqvae")["data"]["value_range"]
        return low, high

    def prior(self, level: str) -> Path:
        """Folder of one level's prior."""
        return self.path / f"prior-{level}"

    def guide(self, level: str) -> Path:
        """Folder of the weaker prior by which sampling may be guided."""
        return self.prior(level) / checkpoint.GUIDE

    def read(self, how: str = "") -> dict[str, Any]:
        """Read run.json.

        Args:
            how: the way out where it does not exist; "": the command that makes it.

        Raises:
            UserError: it does not exist, or a newer version wrote it.
        """
        path = self.path / "run.json"
        if not path.is_file():
            first = command("train-vqvae", "--run", self.path, "--data", "DATA")
            raise UserError("this is not a run folder", self.path, how or f"First run {first}")
        record = files.read_json(path)
        checkpoint.check_format(record.get("format", 0), path, record.get("version"))
        return record

    def write(self, **changes: Any) -> None:
        """Set entries of run.json, creating it if needed. Safe while another stage writes too."""
        distributed.on_main(lambda: self._write(changes))

    def _write(self, changes: dict[str, Any]) -> None:
        path = self.path / "run.json"
        files.make_folder(self.path)
        with files.locked(self.path / ".run.lock", wait=True):
            record = self.read() if path.is_file() else {}
            head = {"format": checkpoint.FORMAT, "version": __version__}
            files.write_json(path, {**record, **head, **changes})


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder against other runs for a ``with`` block; the lock file lies beside it.

    Raises:
        UserError: another run holds the lock.
    """
    with ExitStack() as stack:
        distributed.on_main(lambda: _lock(folder, stack))
        yield


def _lock(folder: Path, stack: ExitStack) -> None:
    files.make_folder(folder.parent)
    stack.enter_context(files.locked(folder.parent / f".{folder.name}.lock"))


def resumed(defaults: Mapping[str, Any], kept: Mapping[str, Any], where: object) -> dict[str, Any]:
    """Replace default configs by those that a training began with.

    Args:
        defaults: config by section.
        kept: section -> config as JSON, from run.json. A section that an earlier version did not know takes the
            defaults of its class.
        where: for messages.
    """
    return {name: checkpoint.config_from(type(config), kept.get(name, {}), where) for name, config in defaults.items()}


def limited(training: TrainingConfig, changed: Mapping[str, Any], evaluations: int | None) -> TrainingConfig:
    """Fit a training's defaults to a limit given by the user.

    The limit replaces a default one of the other kind. In a short run there are at least 50 steps between two
    evaluations, but never fewer than two evaluations.

    Args:
        training: the defaults.
        changed: the settings given by the user.
        evaluations: of a long run; None where the user has said how many there are.
    """
    if changed.get("max_minutes"):
        training = replace(training, max_steps=None)
    if steps := changed.get("max_steps"):
        training = replace(training, max_minutes=None)
        if evaluations:
            training = replace(training, evaluations=min(evaluations, max(2, steps // 50)))
    return training


def initial_batches(config: VQVAEConfig, batch_size: int) -> int:
    """Return the number of batches from which the codebooks are initialised, by k-means."""
    levels = zip(config.shapes, config.num_embeddings, strict=True)
    return max(-(-max(config.init_vectors, k) // (batch_size * h * w)) for (h, w), k in levels)


def png_names(keys: Sequence[str]) -> list[str]:
    """Name a PNG after each image, no two alike, none outside the folder that they are put in.

    Example:
        >>> png_names(["P01/a.jpg", "P01/a.png", "MR_T1.54512_k098"])
        ['P01/a.png', 'P01/a.png.png', 'MR_T1.54512_k098.png']
    """
    names: dict[str, None] = {}
    for key in keys:
        bare = "/".join(part for part in Path(key.lstrip("/")).parts if part != "..")
        end = Path(bare).suffix
        name = f"{bare.removesuffix(end) if end.lower() in SUFFIXES else bare}.png"
        while name in names:
            bare = name = f"{bare}.png"
        names[name] = None
    return list(names)


def start_from(model: nn.Module, folder: Path, fresh: Sequence[str] = ()) -> None:
    """Fill a new model with the weights of another one.

    Args:
        model: of the same architecture.
        folder: of the other model.
        fresh: what the names of tensors begin with that stay as they are.

    Raises:
        UserError: weights missing, or of another architecture.
    """
    if not checkpoint.has_model(folder):
        raise UserError("there is no model to start from", folder, "Give --init another run")
    own, stored = model.state_dict(), checkpoint.load_tensors(folder)
    for name, tensor in own.items():
        other = stored.get(name)
        if name.startswith(tuple(fresh)):
            stored[name] = tensor
        elif other is None or other.shape != tensor.shape:
            what = "is not there" if other is None else f"has shape {tuple(other.shape)}, not {tuple(tensor.shape)}"
            raise UserError(f"--init has another architecture: {name} {what}", folder, "Leave out the model's flags")
    model.load_state_dict({name: stored[name] for name in own})


def longer_training(run: RunFolder, least_steps: int = 0) -> str:
    """Return the command that trains the VQ-VAE for twice its limit, and for ``least_steps`` at least.

    Where there is no training to go on with, as after an import, a new run begins with the model.
    """
    if not checkpoint.has_state(run.vqvae / "state"):
        return command("train-vqvae", "--run", "NEW", "--data", "DATA", "--init", run.path)
    record = run.read()
    kept = record["train_vqvae"]
    training = checkpoint.config_from(TrainingConfig, kept["training"], run.path)
    limit: dict[str, Any] = {"max_minutes": f"{2 * training.max_minutes:g}"} if training.max_minutes else {}
    if training.max_steps or not limit or least_steps:
        steps = training.max_steps or checkpoint.newest_step(run.vqvae / "state")
        limit = {"max_steps": max(2 * steps, least_steps, 1)}
    if not checkpoint.has_model(run.vqvae / "sharpening" / "start"):
        return command("train-vqvae", *flags_of({"run": run.path, "resume": True, **limit}))
    # A resume would only sharpen further.
    begun = kept.get("arguments") or {"data": kept["data"]["data"], "preset": record["preset"]}
    begun = {name: value for name, value in begun.items() if name not in _LIMITS}
    return command("train-vqvae", *flags_of({"run": run.path, **begun, **limit, "overwrite": True}))


def record_of(line: CommandLine, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was typed, for run.json: with --resume, on top of what was typed before, see `limited`."""
    typed = {name: files.plain(value) for name, value in line.given.items()}
    before = kept.get("arguments", {}) if line.given.get("resume") else {}
    replaced = _LIMITS if any(line.changed.get(name) for name in _LIMITS) else ()
    before = {name: value for name, value in before.items() if name not in replaced}
    return {**before, **{name: value for name, value in typed.items() if name not in _PLACES and name not in _ONCE}}


def prepare_folder(folder: Path, line: CommandLine) -> None:
    """Refuse a folder with a training unless --resume or --overwrite is given; --overwrite empties it.

    Then a state in the folder is of the training of this command line, see `CommandLine.prepared`.

    Raises:
        UserError: the folder holds a training and neither flag was given, or both.
    """
    resume, overwrite = (line.given.get(name, False) for name in ("resume", "overwrite"))
    distributed.on_main(lambda: _prepare(folder, resume, overwrite))
    line.prepared = True


def is_trained(folder: Path) -> bool:
    """Tell whether a folder holds a training: a model, or a state to resume from."""
    return is_resumable(folder) or (folder / "model.safetensors").exists()


def is_resumable(folder: Path) -> bool:
    """Tell whether a folder holds a state to resume from, be it of a later part of a VQ-VAE's training alone."""
    return any(checkpoint.has_state(part / "state") for part in (folder, folder / "sharpening", folder / "detail"))


def _prepare(folder: Path, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other", folder, "Give one of them")
    if resume and (folder / "model.safetensors").exists() and not is_resumable(folder):
        raise UserError(
            "this model has no state to resume from",
            folder,
            "Give another --run, and --init with this one to start from its weights",
        )
    if is_trained(folder) and not (resume or overwrite):
        raise UserError(
            "this folder holds a training already", folder, "Add --resume to continue it, or --overwrite to start again"
        )
    if overwrite:
        with files.told_as("cannot remove the earlier training", folder, "Give another --run"):
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()


def check_resumed(kept: dict[str, Any], config: Any, run: RunFolder, free: Sequence[str] = ()) -> None:
    """Refuse to resume a training with a model other than the one it began with.

    Args:
        kept: the model's config when the training began, as JSON.
        config: the present one.
        run: for the message.
        free: settings that may differ because they change no result.

    Raises:
        UserError: names the first setting that differs.
    """
    began = files.plain(asdict(checkpoint.config_from(type(config), kept, run.path)))
    for name, value in files.plain(asdict(config)).items():
        if name not in free and value != began[name]:
            raise UserError(
                f"the training began with {name} {began[name]}, now it is {value}",
                run.path,
                "Leave the flag out, or start again with --overwrite",
            )


def check_fingerprints(run: RunFolder, store: CodeStore, priors: Sequence[str] = ()) -> None:
    """Refuse codes that another VQ-VAE made, and priors trained on other codes.

    Raises:
        UserError: names the two that disagree, and the command that mends it.
    """
    if store.vqvae_sha256 != checkpoint.sha256_of(run.vqvae):
        raise UserError(
            f"these codes were not made by the VQ-VAE in {run.vqvae}",
            run.codes,
            f"Run {command('extract-codes', '--run', run.path, '--overwrite')}",
        )
    for level in priors:
        if checkpoint.load_config(run.prior(level), kind="prior").get("codes") != store.fingerprint:
            raise UserError(
                f"this prior was not trained on the codes in {run.codes}",
                run.prior(level),
                f"Run {command('train-prior', '--run', run.path, '--level', level, '--overwrite')}",
            )


def keep_outcome(outcome: Outcome, run: RunFolder, stage: str, folder: Path) -> None:
    """Write a training's outcome into run.json, and print what was written where."""
    run.write(**{stage: {**run.read()[stage], "outcome": asdict(outcome)}})
    print(f"wrote {folder}/model.safetensors, config.json, stats.jsonl, figures/ and TensorBoard events")


def memory_in_words(num_bytes: float) -> str:
    """Write bytes as MiB or GiB."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


__all__ = [
    "Compute",
    "RunFolder",
    "check_fingerprints",
    "check_resumed",
    "initial_batches",
    "is_trained",
    "keep_outcome",
    "limited",
    "locked",
    "longer_training",
    "memory_in_words",
    "png_names",
    "prepare_folder",
    "record_of",
    "refuse_torchrun",
    "resumed",
    "start_from",
]
