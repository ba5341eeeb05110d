"""A Sphinx directive that lists a command's flags as its ``--help`` prints them: ``{flags} train-vqvae``."""

import contextlib
import importlib
import io
import os
import re
from unittest import mock

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def help_text(stage: str) -> str:
    """Return what ``vqvae2 STAGE --help`` prints."""
    module = importlib.import_module(f"vqvae2.stages.{stage.replace('-', '_')}")
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "100"}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        module.main(["--help"])
    return printed.getvalue()


def groups(text: str) -> dict[str, dict[str, str]]:
    """Read the help of each flag, by group: its title is followed by flags, each by its text, which is set in
    further."""
    found: dict[str, dict[str, str]] = {}
    flags: dict[str, str] = {}
    term = ""
    for line in text.splitlines():
        if title := re.fullmatch(r"(\w[\w ]*):", line):
            flags = found.setdefault(title[1], {})
        elif line.startswith("  -"):
            term = line.strip()
        elif line.startswith("        ") and term:
            flags[term] = f"{flags.get(term, '')} {line.strip()}".strip()
    return found


def marked(text: str) -> list[nodes.Node]:
    """Set what stands between backquotes, and flags, as code."""
    parts = re.split(r"`([^`]+)`|(--[a-z][a-z-]*)", text)
    found: list[nodes.Node] = []
    for plain, quoted, flag in zip(parts[::3], [*parts[1::3], None], [*parts[2::3], None], strict=True):
        found.append(nodes.Text(plain))
        if code := quoted or flag:
            found.append(nodes.literal("", code))
    return found


class Flags(SphinxDirective):
    """``{flags} STAGE``: its flags in groups, each with its help."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        made: list[nodes.Node] = []
        for title, flags in groups(help_text(self.arguments[0])).items():
            listed = nodes.definition_list()
            for term, text in flags.items():
                body = nodes.definition("", nodes.paragraph("", "", *marked(text)))
                listed.append(nodes.definition_list_item("", nodes.term("", "", nodes.literal("", term)), body))
            made += [nodes.rubric("", title), listed]
        return made


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("flags", Flags)
    return {"parallel_read_safe": True}
