"""The command line of a stage: values, layers of settings, help, and errors in one line."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from vqvae2.errors import UserError
from vqvae2.stages.commands import flags_of
from vqvae2.stages.flags import CommandLine


@dataclass(frozen=True)
class Section:
    """Settings of a part."""

    size: int = 4
    """Cells, >= 1. Second sentence."""
    rate: float = 0.5
    """Rate."""
    width: int = 7
    """Taken from elsewhere."""
    shapes: tuple[int, ...] = (1, 2)
    """Sizes of each level."""
    limit: int | None = None
    """Limit."""
    kind: Literal["plain", "layer"] = "plain"
    """Kind."""
    position_logits: bool = True
    """Start from counts."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.rate <= 0:
            raise ValueError(f"size must be >= 1 and rate > 0, got {self.size}, {self.rate}")


@dataclass(frozen=True)
class Arguments:
    """A stage.

    And more of it.
    """

    run: Path
    """Run folder."""
    part: Section = field(default_factory=Section)
    label: tuple[str, ...] = ()
    """Labels."""
    config: Path | None = None
    """JSON file."""
    resume: bool = False
    """Continue."""


GROUPS = {"part": ("rate", "part"), "running": ("run", "label")}


def line(*argv: str, **options: Any) -> CommandLine[Arguments]:
    return CommandLine("sample", Arguments, GROUPS, argv, fixed=["part.width"], **options)


def test_values_are_read_by_their_types():
    argv = "--run a/b --size 3 --rate=1e-2 --shapes 5 6 7 --limit -2 --kind layer --no-position-logits --resume"
    settings = line(*argv.split()).settings()
    assert settings == Arguments(Path("a/b"), Section(3, 0.01, 7, (5, 6, 7), -2, "layer", False), resume=True)
    assert line("--run", "x", "--no_position_logits").settings().part.position_logits is False
    assert line("--run", "x", "--label", "a=1", "b=2", "--label=c=3").settings().label == ("a=1", "b=2", "c=3")
    assert line("--run", "x", "--shapes", "1", "2", "--shapes", "3").settings().part.shapes == (3,)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ("--size 3", "--run is missing. Add --run PATH: Run folder."),
        ("--run", "--run has no value"),
        ("--run x --size", "--size has no value. Give --size N."),
        ("--run x --size three", "--size needs an integer, got 'three'"),
        ("--run x --size 2.5", "--size needs an integer, got '2.5'"),
        ("--run x --rate nan", "--rate needs a number, got 'nan'"),
        ("--run x --shapes 1 b", "--shapes needs an integer, got 'b'"),
        ("--run x --size 0", "--size must be >= 1"),
        ("--run x --kind layr", "--kind layr is not known. Did you mean layer? Give one of plain, layer."),
        ("--run x --shpaes 1", "there is no flag --shpaes. Did you mean --shapes?"),
        ("--run x --zzz 1", "there is no flag --zzz. See --help."),
        ("--run x --width 3", "there is no flag --width"),
        ("--run x --no-size", "there is no flag --no-size"),
        ("--run x y", "unexpected argument 'y'"),
        ("--run x --resume yes", "unexpected argument 'yes'"),
        ("--run x --resume=yes", "--resume=yes takes no value"),
        ("--run=", "--run needs a path, got ''"),
        ("-r x", "unexpected argument '-r'"),
    ],
)
def test_errors_name_the_flag_in_one_line(argv, told):
    with pytest.raises(UserError) as error:
        line(*argv.split()).settings()
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_flags_override_the_file_which_overrides_defaults(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"size": 9, "shapes": [3], "limit": None, "position_logits": False}))
    argv = ["--run", "x", "--config", str(path), "--size", "8"]
    settings = line(*argv).settings(part=Section(size=1, rate=2.0, limit=5))
    assert settings.part == Section(8, 2.0, 7, (3,), None, "plain", False)
    assert line(*argv).given.keys() == {"run", "config", "size"}
    assert line(*argv).changed["shapes"] == (3,)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ([1], "one JSON object"),
        ({"siz": 1}, "no setting has the name siz"),
        ({"width": 1}, "no setting has the name width"),
        ({"run": "y"}, "no setting has the name run"),
        ({"size": "a"}, "--size needs an integer"),
        ({"size": True}, "size needs one value, got True"),
        ({"shapes": 3}, "shapes needs a list"),
        ({"position_logits": 1}, "position_logits needs true or false"),
        ({"size": None}, "size"),
    ],
)
def test_a_config_file_is_checked_like_flags(tmp_path, record, told):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=told):
        line("--run", "x", "--config", str(path))


def test_help_shows_groups_in_order_with_present_defaults(capsys):
    with pytest.raises(SystemExit) as end:
        line("--help").settings(part=Section(rate=0.25))
    assert end.value.code == 0
    told = capsys.readouterr().out
    order = ["usage: ", "--run PATH [flags]", "A stage.", "And more", "part:", "--rate X", "--size N", "--shapes N ..."]
    order += ["--kind {plain,layer}", "running:", "--run PATH", "--label LABEL ...", "--resume", "--help", "--version"]
    places = [told.index(order[0])]
    for text in order[1:]:
        places.append(told.index(text, places[-1]))
    assert "Rate. (default: 0.25)" in told
    assert "Cells, >= 1. Second sentence. (default: 4)" in told
    assert "Sizes of each level. (default: 1 2)" in told
    assert "Start from counts. On by default; --no-position-logits turns it off." in told
    assert "Limit.\n" in told
    assert "None" not in told
    assert "width" not in told


def test_a_flag_may_be_required_unless_resumed():
    with pytest.raises(UserError, match="--rate is missing"):
        line("--run", "x", required=["rate"])
    assert line("--run", "x", "--resume", required=["rate"]).settings().part.rate == 0.5


def test_one_value_or_one_for_each_level(tmp_path):
    @dataclass(frozen=True)
    class Widths:
        """A stage."""

        widths: int | tuple[int, ...] = 8
        """Channels."""
        part: Section = field(default_factory=Section)
        config: Path | None = None
        """JSON file."""

    def widths(*argv: str) -> object:
        return CommandLine("sample", Widths, {"all": ("widths", "part")}, argv).settings().widths

    assert [widths(), widths("--widths", "3"), widths("--widths", "3", "4")] == [8, 3, (3, 4)]
    with pytest.raises(UserError, match="--widths needs an integer, got 'b'"):
        widths("--widths", "3", "b")


def test_typed_flags_are_written_as_they_are_read():
    argv = ["--run", "a b", "--shapes", "4", "5", "--label", ">=60", "a,b", "--no-position-logits", "--resume"]
    assert flags_of(line(*argv).given) == argv
