"""What the stages share: the run folder and the command line."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro

from vqvae2 import checkpoint, distributed, files
from vqvae2.codes import CodeStore
from vqvae2.device import DeviceChoice, PrecisionChoice, resolve_device, resolve_precision
from vqvae2.errors import UserError
from vqvae2.training import Outcome
from vqvae2.version import __version__

T = TypeVar("T")


@dataclass(frozen=True)
class Compute:
    """Where and how precisely to compute."""

    device: DeviceChoice = "auto"
    """Device; auto takes CUDA, then MPS, then the CPU."""
    precision: PrecisionChoice = "auto"
    """Precision of matrix products in training: auto takes bf16 where the hardware multiplies it fast. Extraction
    and sampling take bf16 only where it is asked for; evaluation is always in fp32."""
    seed: int = 0
    """Seed of every random draw, >= 0."""
    num_workers: int = 0
    """Processes that load training batches; 0 loads in the main one."""

    def resolve(self) -> tuple[torch.device, torch.dtype]:
        """Return the device and the precision."""
        if self.seed < 0:
            raise UserError(f"--seed {self.seed} is negative", how="Give 0 or more")
        if self.num_workers < 0:
            raise UserError(f"--num-workers {self.num_workers} is negative", how="Give 0 or more")
        device = distributed.local_device(resolve_device(self.device))
        return device, resolve_precision(self.precision, device)


@dataclass(frozen=True)
class RunFolder:
    """The folder that the stages share, and its run.json."""

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
    def codes(self) -> Path:
        """The code store."""
        return self.path / "codes"

    def prior(self, level: str) -> Path:
        """Folder of one level's prior."""
        return self.path / f"prior-{level}"

    def read(self) -> dict[str, Any]:
        """Return run.json.

        Raises:
            UserError: there is none yet, or it is from a newer version.
        """
        path = self.path / "run.json"
        if not path.is_file():
            raise UserError("this is not a run folder", self.path, "Run train_vqvae.py with this --run first")
        record = files.read_json(path)
        checkpoint.check_format(record.get("format", 0), path, record.get("version"))
        return record

    def write(self, **changes: Any) -> None:
        """Change entries of run.json, which is made if absent; two stages may do so at once."""
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
    """Keep other runs away from a folder for a ``with`` block, by a lock beside it.

    Raises:
        UserError: another run works on it.
    """
    with ExitStack() as stack:
        distributed.on_main(lambda: _lock(folder, stack))
        yield


def _lock(folder: Path, stack: ExitStack) -> None:
    files.make_folder(folder.parent)
    stack.enter_context(files.locked(folder.parent / f".{folder.name}.lock"))


def option(argv: list[str], name: str) -> str | None:
    """Look ahead at one flag's value, as ``--name VALUE`` or ``--name=VALUE``."""
    value = None
    for i, argument in enumerate(argv):
        if argument == f"--{name}" and i + 1 < len(argv):
            value = argv[i + 1]
        elif argument.startswith(f"--{name}="):
            value = argument.split("=", 1)[1]
    return value


def parse(arguments: type[T], default: T, argv: list[str], prog: str, description: str) -> T:
    """Read the command line into a dataclass; a wrong flag ends it with tyro's message and code 2."""

    def read() -> T:
        return tyro.cli(
            arguments,
            default=default,
            args=argv,
            prog=prog,
            description=description,
            config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.SuppressFixed, tyro.conf.FlagCreatePairsOff),
        )

    try:
        return distributed.on_main(read)
    except ValueError as error:
        raise UserError(str(error), "command line", "See --help") from error


def with_config_file(configs: dict[str, Any], argv: list[str]) -> dict[str, Any]:
    """Replace fields of configs by those of ``--config FILE.json``, wherever a field of that name exists.

    Raises:
        UserError: a name that no config has, or a value that one refuses.
    """
    path = option(argv, "config")
    if path is None:
        return configs
    record = files.read_json(path)
    if not isinstance(record, dict):
        raise UserError("a config file holds one JSON object", path, 'Such as {"num_embeddings": [512, 512]}')
    known = {field.name for config in configs.values() for field in fields(config)}
    for name in record:
        if name not in known:
            raise UserError(f"no setting has the name {name}", path, "See --help for the names")
    return {key: merged(config, record, path) for key, config in configs.items()}


def merged(config: T, record: dict[str, Any], where: object) -> T:
    """Replace the fields of a config that a JSON record names; other keys of the record are left out."""
    current = {field.name: getattr(config, field.name) for field in fields(config)}  # type: ignore[arg-type]
    return checkpoint.config_from(type(config), {**current, **record}, where)


def prepare_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Refuse to train over an earlier training unless told what to do with it; --overwrite empties the folder.

    Raises:
        UserError: the folder holds a training and neither flag was given, or both.
    """
    distributed.on_main(lambda: _prepare(folder, resume, overwrite))


def is_trained(folder: Path) -> bool:
    """Tell whether a folder holds a training: a model, or a state to go on from."""
    return checkpoint.has_state(folder / "state") or (folder / "model.safetensors").exists()


def _prepare(folder: Path, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other", folder, "Give one of them")
    if is_trained(folder) and not (resume or overwrite):
        raise UserError("there is a training already", folder, "Add --resume to go on or --overwrite to start again")
    if overwrite:
        with files.told_as("cannot remove the earlier training", folder, "Give another --run"):
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()


def check_resumed(kept: dict[str, Any], config: Any, run: RunFolder, free: Sequence[str] = ()) -> None:
    """Refuse to resume a training with another model than it began with.

    Args:
        kept: the config that it began with, as JSON.
        config: the one asked for.
        run: for the message.
        free: settings that may differ, since they change no result.

    Raises:
        UserError: names the first setting that differs.
    """
    for name, value in asdict(config).items():
        if name in kept and name not in free and files.plain(value) != kept[name]:
            raise UserError(
                f"the training began with {name} {kept[name]}, not {files.plain(value)}",
                run.path,
                "Leave the flag out, or start again with --overwrite",
            )


def check_fingerprints(run: RunFolder, store: CodeStore, priors: Sequence[str] = ()) -> None:
    """Refuse what does not belong together: codes of another VQ-VAE, or priors of other codes.

    Raises:
        UserError: names the two that disagree, and what to run again.
    """
    if store.vqvae_sha256 != checkpoint.sha256_of(run.vqvae):
        raise UserError(
            f"these codes were made by another VQ-VAE than {run.vqvae}",
            run.codes,
            "Run extract_codes.py --overwrite",
        )
    for level in priors:
        if checkpoint.load_config(run.prior(level), kind="prior").get("codes") != store.fingerprint:
            raise UserError(
                f"this prior was trained on other codes than {run.codes}",
                run.prior(level),
                f"Run train_prior.py --level {level} --overwrite",
            )


def tell_outcome(outcome: Outcome, run: RunFolder, stage: str, folder: Path) -> None:
    """Print how a training ended and where its model is, and keep it in run.json."""
    run.write(**{stage: {**run.read()[stage], "outcome": asdict(outcome)}})
    best = "  ".join(f"{name} {value:.4g}" for name, value in outcome.best.items())
    print(f"{outcome.reason} at step {outcome.steps:,} after {outcome.seconds / 60:.1f} minutes")
    print(f"best at step {outcome.best_step:,}: {best}")
    print(f"wrote {folder}/model.safetensors, config.json, stats.jsonl, figures/ and TensorBoard events")


def memory_in_words(num_bytes: float) -> str:
    """Write bytes as MiB or GiB."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


__all__ = [
    "Compute",
    "RunFolder",
    "check_fingerprints",
    "check_resumed",
    "is_trained",
    "locked",
    "memory_in_words",
    "merged",
    "option",
    "parse",
    "prepare_folder",
    "tell_outcome",
    "with_config_file",
]
