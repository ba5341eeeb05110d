"""The stages by name, and their command lines in the form in which the user called the present one."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqvae2 import distributed

__all__ = ["STAGES", "TOOLS", "command", "flags_of"]

STAGES = {
    "train-vqvae": "train the VQ-VAE on images",
    "extract-codes": "encode the images into the code store",
    "train-prior": "train the prior of one level on the codes",
    "sample": "sample codes from the priors and decode them into new images",
    "evaluate": "measure a run and write its report",
}
"""What each stage does, by its name on the command line, in the order of the pipeline."""

TOOLS = {
    "compress": "write the codes of images into one small file",
    "decompress": "read such a file, and write its images",
    "export": "copy the models of a run into a small folder of their own",
    "import-rosinality": "make a run folder of a VQ-VAE of rosinality/vq-vae-2-pytorch",
    "cache": "list the decoded images that are kept, and remove them",
}
"""What else ``vqvae2`` does, by name."""


def command(stage: str, *arguments: object) -> str:
    """Write the command line of a stage: as a script, as ``vqvae2``, as a module or under torchrun, as now called.

    Example:
        >>> command("train-prior", "--run", "my runs/a", "--level", "top")
        "python -m vqvae2 train-prior --run 'my runs/a' --level top"
    """
    return shlex.join([*_head(stage), *map(str, arguments)])


def flags_of(given: Mapping[str, Any]) -> list[str]:
    """Write settings as flags.

    Example:
        >>> flags_of({"max_steps": 30, "top_k": [0, 5], "position_logits": False})
        ['--max-steps', '30', '--top-k', '0', '5', '--no-position-logits']
    """
    words: list[str] = []
    for name, value in given.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return words


def _head(stage: str) -> list[str]:
    """Write what stands before a stage's flags."""
    script = Path(sys.argv[0])
    python = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv)]  # with options, up to the script or -m
    if script.suffix == ".py" and script.stem.replace("_", "-") in STAGES:
        target = [str(script.with_name(f"{stage.replace('-', '_')}.py"))]
    elif script.name == "vqvae2":
        target, python = [_as_typed(script), stage], []
    elif python[-1:] == ["-m"] and script.parts[-2:] == ("vqvae2", "__main__.py"):
        target = ["vqvae2", stage]
    else:  # called from Python
        target, python = ["vqvae2", stage], ["python", "-m"]
    if distributed.announced() == 1:
        return [*python, *target]
    one_machine = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    options = ["--nproc-per-node", str(distributed.announced())] if one_machine else ["..."]
    options += ["--no-python"] if not python else ["-m"] if python[-1] == "-m" else []
    return ["torchrun", *options, "--", *target]


def _as_typed(script: Path) -> str:
    """Write an installed program by its name alone where the shell finds it by that."""
    found = shutil.which(script.name)
    return script.name if found and Path(found).resolve() == script.resolve() else str(script)
