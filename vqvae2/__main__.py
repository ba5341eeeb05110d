"""The command ``vqvae2 STAGE``: imports and runs one stage."""

import difflib
import importlib
import sys
from collections.abc import Sequence

from vqvae2.errors import UserError
from vqvae2.stages.commands import STAGES
from vqvae2.version import __version__

__all__ = ["STAGES", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage that the first argument names.

    Args:
        argv: the arguments after the program's name; those of the process when None.

    Returns:
        The exit code: the stage's own, or 2 if there is no such stage.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    first = arguments[0] if arguments else ""
    if first in STAGES:
        module = importlib.import_module(f"vqvae2.stages.{first.replace('-', '_')}")
        return int(module.main(arguments[1:]))
    if first in ("-h", "--help", "--version"):
        print(f"vqvae2 {__version__}" if first == "--version" else _help())
        return 0
    near = difflib.get_close_matches(first, STAGES, 1)
    hint = f"Did you mean {near[0]}?" if near else f"Choose one of {', '.join(STAGES)}"
    print(
        f"error: {UserError(f'there is no stage {first}' if first else 'no stage is named', how=hint)}", file=sys.stderr
    )
    return 2


def _help() -> str:
    width = max(map(len, STAGES))
    lines = [f"  {name:<{width}}  {line}" for name, line in STAGES.items()]
    return "\n".join(
        [
            "usage: vqvae2 STAGE [flags]",
            "",
            "Images -> VQ-VAE -> codes -> prior -> codes -> images. Stages, in the order of a run:",
            "",
            *lines,
            "",
            "vqvae2 STAGE --help lists the flags of one stage.",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
