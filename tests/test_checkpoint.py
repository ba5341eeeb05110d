"""What is saved comes back equal, what is broken or dangerous is refused in one line."""

import dataclasses
import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_runs import one_line
from torch import nn

from vqvae2 import checkpoint
from vqvae2.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config:
    width: int
    scales: tuple[tuple[float, ...], ...] = ((1.0, 2.0), (3.0,))
    kind: str = "vqvae"


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    base = torch.arange(12.0).reshape(3, 4)
    return {
        "weight": base,
        "transposed": base.T,  # not contiguous, and shares the storage of weight
        "counts": torch.tensor([1, 2], dtype=torch.int64),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
    }


class Exploit:
    """Unpickles by making the file that it names."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.victim), "w")


def test_a_model_comes_back_equal_with_its_config_and_its_digest(tmp_path, tensors):
    folder = tmp_path / "deep" / "vqvae"
    digest = checkpoint.save_pretrained(folder, Config(width=8), tensors)
    assert digest == checkpoint.sha256_of(folder)
    loaded = checkpoint.load_tensors(folder)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    record = checkpoint.load_config(folder, kind="vqvae")
    assert record == {**record, "width": 8, "scales": [[1.0, 2.0], [3.0]], "format": 1, "kind": "vqvae"}
    assert checkpoint.config_from(Config, record, folder) == Config(width=8)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_equal_weights_give_equal_digests_and_other_weights_another(tmp_path, tensors):
    one = checkpoint.save_pretrained(tmp_path / "a", {"kind": "prior"}, tensors)
    reordered = dict(reversed(tensors.items()))
    assert checkpoint.save_pretrained(tmp_path / "b", {}, reordered, kind="prior") == one
    tensors["weight"] = tensors["weight"] + 1
    assert checkpoint.save_pretrained(tmp_path / "b", {"kind": "prior"}, tensors) != one


def test_wrapped_names_and_a_missing_kind_are_programming_mistakes(tmp_path, tensors):
    for name in ("module.weight", "_orig_mod.weight", "encoder._orig_mod.weight"):
        with pytest.raises(ValueError, match="prefix"):
            checkpoint.save_pretrained(tmp_path, {"kind": "vqvae"}, {name: tensors["weight"]})
    with pytest.raises(ValueError, match="kind"):
        checkpoint.save_pretrained(tmp_path, {}, tensors)


def test_a_kill_between_the_two_files_never_leaves_weights_beside_another_models_config(tmp_path, tensors, monkeypatch):
    checkpoint.save_pretrained(tmp_path, {"kind": "vqvae", "width": 1}, tensors)
    monkeypatch.setattr(checkpoint, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_pretrained(tmp_path, {"kind": "vqvae", "width": 2}, tensors)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no such file"),
        ("{", "cannot read"),
        ("[]", "not the config of a model"),
        ('{"format": "one", "kind": "vqvae"}', "not the config of a model"),
        ('{"format": 2, "kind": "vqvae", "version": "9.9"}', "by vqvae2 9.9 in format 2, newer than the 1"),
        ('{"format": 1, "kind": "prior"}', "holds a prior, not a vqvae"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_in_one_line(tmp_path, text, says):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError) as error:
        checkpoint.load_config(tmp_path, kind="vqvae")
    one_line(error, says, str(tmp_path))


def test_a_record_without_a_needed_field_is_refused(tmp_path):
    with pytest.raises(UserError) as error:
        checkpoint.config_from(Config, {"scales": []}, tmp_path)
    one_line(error, "width", str(tmp_path))


def test_missing_truncated_and_pickled_weights_are_refused_and_run_nothing(tmp_path, tensors):
    path = tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="no weights"):
        checkpoint.load_tensors(tmp_path)
    blob = safetensors.torch.save({"weight": tensors["weight"]})
    victim = tmp_path / "victim"
    for content in (blob[:-1], blob[:7], b"", pickle.dumps(Exploit(victim))):
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            checkpoint.load_tensors(tmp_path)
        one_line(error, str(path))
    assert not victim.exists()


def test_weights_of_another_shape_than_the_module_are_refused_in_one_line(tmp_path):
    checkpoint.save_pretrained(tmp_path, {"kind": "vqvae"}, nn.Linear(2, 3).state_dict())
    with pytest.raises(UserError) as error:
        checkpoint.load_weights(nn.Linear(3, 3), tmp_path)
    one_line(error, "do not fit", str(tmp_path))


def whole_state() -> dict[str, object]:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "best": float("inf"),
        "epoch": 3,
        "stage": "top",
        "nothing": None,
        "nested": [(1, 2.5), {"a": {1: torch.tensor([True])}}, OrderedDict(b=1)],
    }


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_a_training_state_comes_back_equal(tmp_path):
    state = whole_state()
    assert not checkpoint.has_state(tmp_path / "state")
    checkpoint.save_state(tmp_path / "state", 7, state)
    assert checkpoint.has_state(tmp_path / "state")
    assert same(checkpoint.load_state(tmp_path / "state"), {**state, "step": 7})


def test_the_last_two_states_are_kept_and_abandoned_later_ones_go(tmp_path):
    for step in (5, 10, 100):
        checkpoint.save_state(tmp_path, step, {})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-0000000010.pt", "step-0000000100.pt"]
    checkpoint.save_state(tmp_path, 50, {})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-0000000010.pt", "step-0000000050.pt"]
    assert checkpoint.load_state(tmp_path)["step"] == 50


@pytest.mark.parametrize("damage", ["truncated", "empty", "zeroed", "first bytes", "flipped"])
def test_a_damaged_newest_state_falls_back_to_the_one_before_and_says_so(tmp_path, damage, caplog):
    checkpoint.save_state(tmp_path, 1, {"weight": torch.arange(1000.0)})
    newest = checkpoint.save_state(tmp_path, 2, {"weight": torch.arange(1000.0)})
    blob = bytearray(newest.read_bytes())
    middle = bytes(blob).index(torch.arange(1000.0).numpy().tobytes()) + 2000
    flipped = blob[:middle] + bytes([blob[middle] ^ 1]) + blob[middle + 1 :]
    content = {
        "truncated": blob[: len(blob) // 2],
        "empty": b"",
        "zeroed": bytes(len(blob)),
        "first bytes": blob[:3],
        "flipped": flipped,
    }[damage]
    newest.write_bytes(content)
    state = checkpoint.load_state(tmp_path)
    assert state["step"] == 1
    assert torch.equal(state["weight"], torch.arange(1000.0))
    assert newest.name in caplog.text


def test_no_state_and_no_whole_state_are_refused(tmp_path):
    with pytest.raises(UserError, match="no state to resume"):
        checkpoint.load_state(tmp_path / "state")
    checkpoint.save_state(tmp_path, 1, {}).write_bytes(b"PK")
    with pytest.raises(UserError, match="every saved state is damaged"):
        checkpoint.load_state(tmp_path)


def exploit_in(kind: str, path: Path, victim: Path) -> None:
    exploit = {"step": 9, "format": 1, "weights": Exploit(victim)}
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps(exploit))
    elif kind == "protocol 0":
        path.write_bytes(pickle.dumps(exploit, protocol=0))
    elif kind == "torch.save":
        torch.save(exploit, path)
    else:  # our own archive with its pickle exchanged
        whole = checkpoint.save_state(path.parent, 9, {"weight": torch.ones(2)}).read_bytes()
        path.write_bytes(whole)
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, pickle.dumps(exploit, 2) if name.endswith("data.pkl") else content)


@pytest.mark.parametrize("kind", ["bare pickle", "protocol 0", "torch.save", "exchanged"])
def test_a_real_exploit_dressed_as_a_state_is_refused_and_runs_nothing(tmp_path, kind):
    victim, path = tmp_path / "victim", tmp_path / "step-0000000009.pt"
    checkpoint.save_state(tmp_path, 8, {})
    exploit_in(kind, path, victim)
    with pytest.raises(UserError) as error:
        checkpoint.load_state(tmp_path)
    one_line(error, "may run code", str(path))
    assert not victim.exists()
    with path.open("rb") as file:  # the file is a real one: opened the naive way it does its harm
        if kind == "torch.save":
            torch.load(file, weights_only=False)
        elif kind == "exchanged":
            archive = zipfile.ZipFile(file)
            pickle.loads(next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")))
        else:
            pickle.load(file)
    assert victim.exists()


def test_a_state_of_a_newer_format_is_refused(tmp_path):
    torch.save({"step": 1, "format": 2}, tmp_path / "step-0000000001.pt")
    with pytest.raises(UserError, match="format 2, newer than the 1"):
        checkpoint.load_state(tmp_path)


@pytest.mark.parametrize(
    ("state", "place"),
    [
        ({"rng": np.zeros(3)}, "state['rng'] is a ndarray"),
        ({"a": [{"b": np.float64(1)}]}, "state['a'][0]['b'] is a float64"),
        ({"path": Path("x")}, "state['path']"),
        ({"step": 1}, "reserved"),
    ],
)
def test_what_could_not_be_read_back_is_refused_when_it_is_saved(tmp_path, state, place):
    with pytest.raises(ValueError) as error:
        checkpoint.save_state(tmp_path, 1, state)
    assert place in str(error.value)
    assert not any(tmp_path.iterdir())


def test_what_a_killed_process_left_is_swept_by_the_next_save(tmp_path, tensors):
    litter = tmp_path / ".model.safetensors.12345.tmp"
    for save in (
        lambda: checkpoint.save_pretrained(tmp_path, {"kind": "vqvae"}, tensors),
        lambda: checkpoint.save_state(tmp_path, 1, {}),
    ):
        litter.write_bytes(b"half")
        save()
        assert not litter.exists()


def test_a_file_in_the_place_of_a_folder_is_told_in_one_line(tmp_path):
    (tmp_path / "vqvae").write_text("")
    with pytest.raises(UserError) as error:
        checkpoint.save_pretrained(tmp_path / "vqvae", {"kind": "vqvae"}, {})
    one_line(error, "File exists", "vqvae")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no resource limits")
def test_a_state_that_finds_no_room_is_told_in_one_line_and_the_last_one_stands(tmp_path):
    import resource

    checkpoint.save_state(tmp_path, 1, {"value": torch.zeros(10)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # the kernel refuses what goes beyond
    try:
        with pytest.raises(UserError, match="cannot write") as error:
            checkpoint.save_state(tmp_path, 2, {f"part {i}": torch.zeros(1000) for i in range(10)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    one_line(error, "File too large", "step-0000000002.pt")
    assert checkpoint.load_state(tmp_path)["step"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000000001.pt"]
