"""The command ``vqvae2 STAGE``: hands over to one stage, which alone is imported."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from vqvae2.errors import UserError
from vqvae2.version import __version__

__all__ = ["main"]

STAGES = {
    "train-vqvae": "train the VQ-VAE on images",
    "extract-codes": "encode the images into the code store",
    "train-prior": "train the prior of one level on the codes",
    "sample": "draw codes from the priors and decode them into new images",
    "evaluate": "measure a run and write its report",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage that the first argument names.

    Args:
        argv: the arguments after the program's name; those of the process when None.

    Returns:
        The exit code: the stage's own, or 2 where no stage has the name given.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and not arguments[0].startswith("-"):
        stage, *rest = arguments
        if stage in STAGES:
            module = importlib.import_module(f"vqvae2.stages.{stage.replace('-', '_')}")
            return int(module.main(rest, prog=f"vqvae2 {stage}"))
        error = UserError("there is no such stage", stage, f"Choose one of {', '.join(STAGES)}")
        print(f"error: {error}", file=sys.stderr)
        return 2

    width = max(map(len, STAGES))
    parser = argparse.ArgumentParser(
        prog="vqvae2",
        usage="vqvae2 STAGE [flags]",
        description="Images -> VQ-VAE -> codes -> prior -> codes -> images.",
        epilog="stages, in the order of a run:\n"
        + "\n".join(f"  {name:<{width}}  {line}" for name, line in STAGES.items())
        + "\n\nvqvae2 STAGE --help lists the flags of one stage.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vqvae2 {__version__}")
    parser.parse_args(arguments)
    error = UserError("no stage is named", "vqvae2", f"Choose one of {', '.join(STAGES)}")
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
