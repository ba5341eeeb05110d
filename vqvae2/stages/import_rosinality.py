"""Make a run folder of a VQ-VAE that rosinality/vq-vae-2-pytorch has trained."""

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from vqvae2.data import AugmentationConfig, DataConfig, open_data
from vqvae2.errors import UserError
from vqvae2.imported import read_rosinality, vqvae_of_rosinality
from vqvae2.presets import PRESETS
from vqvae2.stages.commands import command
from vqvae2.stages.common import Compute, RunFolder, is_trained, locked, record_of, refuse_torchrun
from vqvae2.stages.data_report import write_data_report
from vqvae2.stages.flags import CommandLine
from vqvae2.stages.launch import run_stage
from vqvae2.stages.sharpening import SharpeningConfig
from vqvae2.stages.train_vqvae import check_images, check_places

_PRESET = "default"


@dataclass(frozen=True)
class Arguments:
    """Make a run folder of a VQ-VAE that rosinality/vq-vae-2-pytorch has trained; the other stages go on from there.

    Nothing that the checkpoint holds is run. Priors of that project differ from ours: train them on the codes.
    """

    run: Path
    """Run folder, which all stages share; created if needed."""
    checkpoint: Path
    """File that its train_vqvae.py has written, such as vqvae_560.pt."""
    data: DataConfig = field(default_factory=partial(DataConfig, fit="cover"))  # as in its own training


_GROUPS = {
    "data": ("data", "size", "fit", "labels", "subject_pattern", "layout", "channels"),
    "running": ("run", "checkpoint"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the tool; return its exit code."""
    line = partial(CommandLine, "import-rosinality", Arguments, _GROUPS, required=["data"])
    return run_stage(line, _story, argv)


def _story(line: CommandLine[Arguments]) -> None:
    arguments = line.settings()
    refuse_torchrun("import")
    run = RunFolder(arguments.run)
    if is_trained(run.vqvae):
        raise UserError("there is a VQ-VAE already", run.vqvae, "Give another --run")
    check_places(arguments.data, run)
    tensors = read_rosinality(arguments.checkpoint)
    channels = vqvae_of_rosinality(tensors, 8, 8, arguments.checkpoint).config.channels
    if arguments.data.channels not in (None, channels):
        raise UserError(
            f"this VQ-VAE takes images of {channels} channels", arguments.checkpoint, "Leave out --channels"
        )
    data = open_data(replace(arguments.data, channels=channels))
    print(data.report())
    check_images(data)
    model = vqvae_of_rosinality(tensors, data.height, data.width, arguments.checkpoint)
    config = model.config
    with locked(run.vqvae):
        write_data_report(data, run.data_report)
        run.write(
            preset=_PRESET,
            levels=config.levels,
            seed=0,
            data={**asdict(arguments.data), **data.to_config()},
            import_rosinality={"arguments": record_of(line, {})},
            train_vqvae={
                "data": asdict(replace(arguments.data, channels=channels)),
                "model": asdict(config),
                "training": asdict(PRESETS[_PRESET].vqvae_training),
                "augmentation": asdict(AugmentationConfig()),
                "copies": 0,
                "sharpening": asdict(SharpeningConfig()),
                "compute": asdict(Compute()),
                "imported": arguments.checkpoint.name,
            },
        )
        model.save_pretrained(run.vqvae, data.to_config())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"model      {parameters:,} parameters, {config.hidden_channels} hidden channels")
    shapes = zip(config.levels, config.shapes, config.num_embeddings, strict=True)
    print(f"codes      {'  '.join(f'{level} {h}x{w} of {k}' for level, (h, w), k in shapes)}")
    print("note       figures of held-out images mean something only if the model was not trained on them")
    print(f"next: {command('extract-codes', '--run', run.path)}")
