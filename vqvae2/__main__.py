"""The command ``vqvae2 NAME``: imports and runs one stage or tool."""

import difflib
import importlib
import sys
from collections.abc import Sequence

from vqvae2.errors import UserError
from vqvae2.stages.commands import STAGES, TOOLS
from vqvae2.version import __version__

__all__ = ["STAGES", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage or tool that the first argument names.

    Args:
        argv: the arguments after the program's name; those of the process when None.

    Returns:
        The exit code: the stage's own, or 2 if there is none of that name.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["import"] and len(arguments) > 1:  # import rosinality CHECKPOINT
        given = ["--checkpoint"] if arguments[2:] and not arguments[2].startswith("-") else []
        arguments = [f"import-{arguments[1]}", *given, *arguments[2:]]
    first = arguments[0] if arguments else ""
    names = [*STAGES, *TOOLS]
    if first in names:
        module = importlib.import_module(f"vqvae2.stages.{first.replace('-', '_')}")
        return int(module.main(arguments[1:]))
    if first in ("-h", "--help", "--version"):
        print(f"vqvae2 {__version__}" if first == "--version" else _help())
        return 0
    near = difflib.get_close_matches(first, names, 1)
    hint = f"Did you mean {near[0]}?" if near else f"Choose one of {', '.join(names)}"
    print(
        f"error: {UserError(f'there is no stage {first}' if first else 'no stage is named', how=hint)}", file=sys.stderr
    )
    return 2


def _help() -> str:
    width = max(map(len, [*STAGES, *TOOLS]))
    stages, tools = ([f"  {name:<{width}}  {line}" for name, line in kind.items()] for kind in (STAGES, TOOLS))
    return "\n".join(
        [
            "usage: vqvae2 NAME [flags]",
            "",
            "Images -> VQ-VAE -> codes -> prior -> codes -> images. Stages, in the order of a run:",
            "",
            *stages,
            "",
            "Besides:",
            "",
            *tools,
            "",
            "vqvae2 NAME --help lists the flags of one.",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
