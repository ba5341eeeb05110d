"""The command line of a stage, made from its dataclass of arguments: flags, help, and errors in one line.

Each field of the dataclass is a flag. A field that is itself a dataclass (a *section*, such as the model's config)
gives its own fields as flags. The docstring below a field is its help.
"""

import ast
import difflib
import functools
import inspect
import math
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vqvae2 import files
from vqvae2.errors import UserError
from vqvae2.stages.commands import command

__all__ = ["CommandLine"]

T = TypeVar("T")

_ONCE = {"labels"}
"""Flags that may be given once: a second value would silently replace the first."""
_KINDS = {int: "an integer", float: "a number", Path: "a path", str: "a string"}


@dataclass(frozen=True)
class _Flag:
    """One flag: its field, the section that holds it ("" for the arguments themselves) and the type of its values."""

    name: str
    section: str
    kind: type
    many: bool
    lone: bool  # one word is taken as a value, not as a tuple of one
    optional: bool
    choices: tuple[str, ...]

    @property
    def text(self) -> str:
        return "--" + self.name.replace("_", "-")

    def read(self, word: str) -> Any:
        """Convert one word of the command line."""
        if self.choices and word not in self.choices:
            near = difflib.get_close_matches(word, self.choices, 1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise UserError(f"{self.text} {word} is not known", how=f"{hint}Give one of {', '.join(self.choices)}")
        try:
            value = self.kind(word)
            if word and not (isinstance(value, float) and not math.isfinite(value)):
                return value
        except ValueError:
            pass
        raise UserError(f"{self.text} needs {_KINDS[self.kind]}, got {word!r}", how="See --help")

    def read_json(self, value: Any, where: object) -> Any:
        """Convert a value of a config file."""
        if value is None and self.optional:
            return None
        listed = isinstance(value, list) or (self.lone and not isinstance(value, bool))
        if (self.kind is bool) != isinstance(value, bool) or self.many != listed:
            wanted = "true or false" if self.kind is bool else "a list" if self.many else "one value"
            raise UserError(f"{self.name} needs {wanted}, got {value!r}", where, "Change the file")
        if self.kind is bool:
            return value
        return tuple(self.read(str(item)) for item in value) if isinstance(value, list) else self.read(str(value))

    @property
    def usage(self) -> str:
        """The flag with a placeholder for its values."""
        if self.kind is bool:
            return self.text
        last_word = self.name.rpartition("_")[2].upper()
        value = {int: "N", float: "X", Path: "PATH"}.get(self.kind, last_word)
        value = "{" + ",".join(self.choices) + "}" if self.choices else value
        return f"{self.text} {value}" + " ..." * self.many


class CommandLine(Generic[T]):
    """The command line of a stage, in two steps: what was typed, then all settings, over defaults known by then.

    Args:
        stage: its name.
        arguments: a dataclass.
        groups: title of each group in the help -> flags, in order, and sections for the rest of theirs. Flags that no
            group names are in the last one.
        argv: the words after the stage's name.
        fixed: fields of sections that are not flags, as ``section.field``.
        required: flags that must be given although their fields have defaults, but not with ``--resume``.

    Attributes:
        given: the flags that were typed, by field name.
        changed: the same, over the settings in the file that ``--config`` names.
        prepared: whether the stage has its folder for itself, and ``--overwrite`` has been carried out.

    Raises:
        UserError: a flag is unknown, is missing, or has no value of its type.
    """

    def __init__(
        self,
        stage: str,
        arguments: type[T],
        groups: Mapping[str, Sequence[str]],
        argv: Sequence[str],
        *,
        fixed: Sequence[str] = (),
        required: Sequence[str] = (),
    ) -> None:
        self.stage, self.type, self.groups = stage, arguments, groups
        self.prepared = False
        sections = {name: hint for name, hint in get_type_hints(arguments).items() if is_dataclass(hint)}
        self.sections: Mapping[str, type] = sections  # type: ignore[assignment]
        self.flags = {flag.name: flag for flag in _flags(arguments, self.sections, fixed)}
        words = [word for word in argv if word not in ("-h", "--help")]
        self.help = len(words) < len(argv)
        self.given = self._read(words)
        self.changed = {**self._file(), **self.given}
        always = [field.name for field in fields(arguments) if _default(field) is MISSING]  # type: ignore[arg-type]
        self.required = [self.flags[name] for name in (*always, *required)]
        for flag in self.required if not self.help else ():
            if flag.name not in self.changed and not (flag.name in required and self.given.get("resume")):
                raise UserError(f"{flag.text} is missing", how=f"Add {flag.usage}: {self._doc(flag)}")

    def settings(self, **defaults: Any) -> T:
        """Return all settings: the defaults, overridden by what was changed.

        Args:
            defaults: by field of the arguments; a field's own default where there is none.

        Raises:
            UserError: a value that a config refuses.
            SystemExit: ``--help`` was asked for, and has been printed.
        """
        for field in fields(self.type):  # type: ignore[arg-type]
            defaults.setdefault(field.name, _default(field))
        if self.help:
            print(self._help(defaults))
            raise SystemExit(0)
        values = {name: self.given.get(name, value) for name, value in defaults.items() if name not in self.sections}
        for section in self.sections:
            own = {name: value for name, value in self.changed.items() if self.flags[name].section == section}
            with self._refused():
                values[section] = replace(defaults[section], **own)
        with self._refused():
            return self.type(**values)

    def refuse_beside(self, flag: str, others: Sequence[str]) -> None:
        """Raise UserError where one of the other flags was typed, which mean nothing beside this one."""
        for name in others:
            if name in self.given:
                raise UserError(
                    f"{self.flags[name].text} does not go with {self.flags[flag].text}", how="Leave one of them out"
                )

    def refuse_alone(self, flag: str, others: Sequence[str], purpose: str) -> None:
        """Raise UserError where one of the other flags was typed, which mean nothing without this one."""
        for name in others:
            if name in self.given:
                raise UserError(f"{self.flags[name].text} is for {purpose}", how=f"Add {self.flags[flag].usage}")

    def _read(self, words: Sequence[str]) -> dict[str, Any]:
        given: dict[str, Any] = {}
        position = 0
        while position < len(words):
            word, position = words[position], position + 1
            if not word.startswith("--"):
                raise UserError(f"unexpected argument {word!r}", how="Quote values with spaces, or see --help")
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            flag, positive = self.flags.get(name), True
            if flag is None and name.startswith("no_") and getattr(self.flags.get(name[3:]), "kind", None) is bool:
                flag, positive = self.flags[name[3:]], False
            if flag is None:
                near = difflib.get_close_matches(name, self.flags, 1)
                hint = f"Did you mean {self.flags[near[0]].text}?" if near else "See --help"
                raise UserError(f"there is no flag {word.partition('=')[0]}", how=hint)
            values = [value] if equals else []
            while not equals and position < len(words) and not words[position].startswith("--"):
                if flag.kind is bool or (values and not flag.many):
                    break
                values.append(words[position])
                position += 1
            if flag.kind is bool:
                if equals:
                    raise UserError(f"{word} takes no value", how=f"Give --{name.replace('_', '-')} alone")
                given[flag.name] = positive
            elif not values:
                raise UserError(f"{flag.text} has no value", how=f"Give {flag.usage}")
            elif flag.many and not (flag.lone and len(values) == 1):
                read = tuple(map(flag.read, values))
                # Texts add up, as in --label sex=F --label age=old; numbers are those of the last flag.
                given[flag.name] = given.get(flag.name, ()) + read if flag.kind is str else read
            else:
                value = flag.read(values[0])
                if flag.name in _ONCE and given.get(flag.name, value) != value:
                    raise UserError(
                        f"{flag.text} is given twice", how="Give it once, with all columns: FILE:COLUMN,COLUMN"
                    )
                given[flag.name] = value
        return given

    def _file(self) -> dict[str, Any]:
        path = self.given.get("config")
        if path is None:
            return {}
        record = files.read_json(path)
        if not isinstance(record, dict):
            raise UserError("a config file holds one JSON object", path, 'Such as {"num_embeddings": [512, 512]}')
        for name in record:
            if name not in self.flags or not self.flags[name].section:
                near = difflib.get_close_matches(name, self.flags, 1)
                hint = f"Did you mean {near[0]}?" if near else "See --help for the names"
                raise UserError(f"no setting has the name {name}", path, hint)
        return {name: self.flags[name].read_json(value, path) for name, value in record.items()}

    @contextmanager
    def _refused(self) -> Iterator[None]:
        """Turn a config's ValueError into a UserError that names flags instead of fields."""
        try:
            yield
        except ValueError as error:
            # A field of one word may be a word of the sentence: it is replaced only if it was typed.
            names = self.given.keys() | {name for name in self.flags if "_" in name}
            text = re.sub(r"\b[a-z0-9_]+\b", lambda m: self.flags[m[0]].text if m[0] in names else m[0], str(error))
            raise UserError(text, how="See --help") from error

    def _help(self, defaults: Mapping[str, Any]) -> str:
        wide = min(shutil.get_terminal_size().columns, 100)
        lines = ["usage: " + " ".join([command(self.stage), *(flag.usage for flag in self.required), "[flags]"])]
        for paragraph in inspect.cleandoc(self.type.__doc__ or "").split("\n\n"):
            lines += ["", *textwrap.wrap(paragraph, wide)]
        for title, members in self._grouped():
            lines += ["", f"{title}:"]
            for flag in members:
                holder = vars(defaults[flag.section]) if flag.section else defaults
                text = self._doc(flag)
                text += " Required." if flag in self.required else _shown(holder[flag.name], flag, text)
                lines.append(f"  {flag.usage}")
                lines += textwrap.wrap(text, wide, initial_indent=" " * 8, subsequent_indent=" " * 8)
        return "\n".join([*lines, "  -h, --help", "  --version"])

    def _doc(self, flag: _Flag) -> str:
        return _docs(self.sections.get(flag.section, self.type)).get(flag.name, "")

    def _grouped(self) -> list[tuple[str, list[_Flag]]]:
        left = dict(self.flags)
        grouped = []
        for title, names in self.groups.items():
            members = [left.pop(name) for name in names if name in left]
            for section in names:
                members += [left.pop(flag.name) for flag in list(left.values()) if flag.section == section]
            grouped.append((title, members))
        grouped[-1][1].extend(left.values())
        return grouped


def _flags(arguments: type, sections: Mapping[str, type], fixed: Sequence[str]) -> Iterator[_Flag]:
    for section, kind in [*sections.items(), ("", arguments)]:
        hints = get_type_hints(kind)
        for field in fields(kind):
            if f"{section}.{field.name}" in fixed or (not section and field.name in sections):
                continue
            hint = hints[field.name]
            kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
            optional = NoneType in kinds
            *rest, hint = (one for one in kinds if one is not NoneType)
            many, lone = get_origin(hint) is tuple, bool(rest)
            one = get_args(hint)[0] if many else hint
            choices = get_args(one) if get_origin(one) is Literal else ()
            yield _Flag(field.name, section, str if choices else one, many, lone, optional, choices)


def _default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


@functools.cache
def _docs(kind: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass; none where its source is not there."""
    texts = {}
    for base in reversed(kind.__mro__):
        with suppress(OSError, TypeError):
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            for node, after in pairwise(getattr(tree, "body", [])):
                if (
                    isinstance(node, ast.AnnAssign)
                    and isinstance(node.target, ast.Name)
                    and isinstance(after, ast.Expr)
                ):
                    texts[node.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return texts


def _shown(value: Any, flag: _Flag, text: str) -> str:
    """Write a default behind a flag's help, unless the help tells it."""
    if flag.kind is bool:
        return f" On by default; --no-{flag.text[2:]} turns it off." if value else ""
    if value is None or value == () or re.search(r"[Dd]efault: ", text):
        return ""
    return f" (default: {' '.join(map(str, value)) if isinstance(value, tuple) else value})"
