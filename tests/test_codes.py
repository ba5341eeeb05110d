"""The store gives back what was put in, costs little more, and refuses what is broken or foreign."""

import json
import multiprocessing
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from tiny_runs import one_line
from torch.utils.data import DataLoader

from vqvae2 import codes as codes_module
from vqvae2.codes import CodeStore, CodeWriter
from vqvae2.errors import UserError

SETTINGS: dict[str, Any] = {
    "levels": ("top", "bottom"),
    "shapes": ((2, 3), (4, 6)),
    "num_embeddings": (7, 512),
    "vqvae_sha256": "ab" * 32,
    "attributes": {"diagnosis": ("healthy", "atrophy"), "sex": ("F", "M")},
    "data": {"channels": 1, "size": [16, 24], "value_range": [0, 255]},
    "rows_per_value": 4,
}


def example(n: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "codes": [rng.integers(0, 7, (n, 2, 3)), rng.integers(0, 512, (n, 4, 6))],
        "keys": [f"sub-{i // 2}/brain_{i}.png" for i in range(n)],
        "subjects": [f"sub-{i // 2}" for i in range(n)],
        "labels": rng.integers(-1, 2, (n, 2)),
    }


def write(path: Path, batches: list[tuple[str, list[int]]], all_of: dict[str, Any], **changes: Any) -> CodeStore:
    with CodeWriter(path, **{**SETTINGS, **changes}) as writer:
        for split, rows in batches:
            writer.append(
                [torch.from_numpy(level[rows]) for level in all_of["codes"]],
                [all_of["keys"][i] for i in rows],
                [all_of["subjects"][i] for i in rows],
                split,
                all_of["labels"][rows],
            )
    return CodeStore(path)


BATCHES = [("train", list(range(5))), ("train", [5]), ("val", []), ("val", list(range(6, 11)))]


@pytest.fixture
def store(tmp_path: Path) -> CodeStore:
    return write(tmp_path / "codes", BATCHES, example(11))


def test_everything_that_was_written_is_read_back(store):
    given = example(11)
    top, bottom = store.read()
    np.testing.assert_array_equal(top, given["codes"][0])
    np.testing.assert_array_equal(bottom, given["codes"][1])
    assert (top.dtype, bottom.dtype) == (np.uint8, np.uint16)
    assert (store.keys, store.subjects) == (given["keys"], given["subjects"])
    assert store.splits == ["train"] * 6 + ["val"] * 5
    np.testing.assert_array_equal(store.labels, given["labels"])
    for name in ("levels", "shapes", "num_embeddings", "vqvae_sha256", "attributes", "data"):
        assert getattr(store, name) == SETTINGS[name]
    assert len(store) == 11
    assert store.indices("val") == [6, 7, 8, 9, 10]
    assert store.indices("test") == []
    store.verify()


def test_rows_in_any_order_and_repeated_equal_the_whole_store_indexed(store):
    chosen = [10, 0, 3, 4, 3, 7]
    for level, whole in zip(store.read(chosen), store.read(), strict=True):
        np.testing.assert_array_equal(level, whole[chosen])
    batch = store.__getitems__(chosen)
    assert batch["index"].tolist() == chosen
    assert batch["label"].tolist() == store.labels[chosen].tolist()
    for level, whole in zip(batch["codes"], store.read(), strict=True):
        assert level.dtype == torch.int64
        assert level.tolist() == whole[chosen].tolist()
    one = store[3]
    assert one["index"] == 3
    assert [level.tolist() for level in one["codes"]] == [level[2].tolist() for level in batch["codes"]]
    assert one["label"].tolist() == batch["label"][2].tolist()
    assert [level.shape for level in store.read([])] == [(0, 2, 3), (0, 4, 6)]
    for outside in ([11], [-1]):
        with pytest.raises(IndexError):
            store.read(outside)


@pytest.mark.parametrize(
    ("k", "dtype"),
    [(2, "u1"), (256, "u1"), (257, "u2"), (512, "u2"), (65536, "u2"), (65537, "u4")],
)
def test_codes_lie_in_the_smallest_type_that_holds_them(tmp_path, k, dtype):
    one_level = {"levels": ("top",), "shapes": ((1, 2),), "num_embeddings": (k,), "attributes": {}}
    with CodeWriter(tmp_path / "codes", **{**SETTINGS, **one_level}) as writer:
        writer.append([torch.tensor([[[0, k - 1]]])], ["a"], ["a"], "train", torch.zeros(1, 0))
    store = CodeStore(tmp_path / "codes")
    (level,) = store.read()
    assert level.dtype == np.dtype(dtype)
    assert level.tolist() == [[[0, k - 1]]]
    assert store.labels.shape == (1, 0)


@pytest.mark.parametrize("rows_per_value", [1, 11, 64, None])
def test_the_layout_is_image_major_with_all_levels_of_an_image_together(tmp_path, rows_per_value):
    given = example(11)
    write(tmp_path / "codes", BATCHES, given, rows_per_value=rows_per_value)
    expected = b"".join(
        top.astype("<u1").tobytes() + bottom.astype("<u2").tobytes()
        for top, bottom in zip(*given["codes"], strict=True)
    )
    with lmdb.open(str(tmp_path / "codes"), readonly=True, lock=False) as env, env.begin() as transaction:
        stored = dict(transaction.cursor())
    values = [value for key, value in sorted(stored.items()) if key.startswith(b"codes/")]
    assert b"".join(values) == expected
    assert len(values) == (1 if rows_per_value is None else -(-11 // rows_per_value))
    assert json.loads(stored[b"metadata"])["splits"] == {"train": 6, "val": 5}


def test_the_fingerprint_follows_the_codes_and_not_the_order_of_writing(tmp_path, store):
    given = example(11)
    shuffled = [("val", [9, 6]), ("train", [4, 0, 2, 5]), ("val", [7, 8, 10]), ("train", [1, 3])]
    other = write(tmp_path / "shuffled", shuffled, given, rows_per_value=3)
    assert other.fingerprint == store.fingerprint
    other.verify()
    given["codes"][1][8, 3, 5] ^= 1
    assert write(tmp_path / "changed", BATCHES, given).fingerprint != store.fingerprint


def test_a_thousand_images_cost_at_most_a_tenth_more_than_their_codes(tmp_path):
    n = 1000
    rng = np.random.default_rng(0)
    settings = {"shapes": ((16, 16), (32, 32)), "num_embeddings": (512, 512), "rows_per_value": None}
    with CodeWriter(tmp_path / "codes", **{**SETTINGS, **settings}) as writer:
        for start in range(0, n, 50):
            names = [f"IXI{i:03d}-HH-1{i:03d}_k{i % 90:03d}.png" for i in range(start, start + 50)]
            maps = [rng.integers(0, 512, (50, *shape)) for shape in settings["shapes"]]
            writer.append(maps, names, [name[:14] for name in names], "train", rng.integers(0, 2, (50, 2)))
    assert os.listdir(tmp_path / "codes") == ["data.mdb"]
    assert (tmp_path / "codes" / "data.mdb").stat().st_size <= 1.10 * n * (16 * 16 + 32 * 32) * 2


def test_the_map_grows_with_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(codes_module, "_BATCH_BYTES", 1 << 20)
    maps = np.random.default_rng(0).integers(0, 60000, (40, 128, 128))
    one_level = {"levels": ("top",), "shapes": ((128, 128),), "num_embeddings": (60000,), "attributes": {}}
    with CodeWriter(tmp_path / "codes", **{**SETTINGS, **one_level, "rows_per_value": 1}) as writer:
        before = writer._env.info()["map_size"]
        for i, level in enumerate(maps):
            writer.append([level[None]], [str(i)], [str(i)], "train", np.zeros((1, 0)))
        writer._commit()
        assert before < maps.size * 2 < writer._env.info()["map_size"]
    np.testing.assert_array_equal(CodeStore(tmp_path / "codes").read()[0], maps)


def identity(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_read_the_same_although_the_parent_has_read_before(store, context, workers):
    if context not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {context} here")
    second = CodeStore(store.path)  # a second store on one file in one process
    loader = DataLoader(store, batch_size=4, num_workers=workers, collate_fn=identity, multiprocessing_context=context)
    for batch in loader:
        expected = second.__getitems__(batch["index"].tolist())
        for level, other in zip(batch["codes"], expected["codes"], strict=True):
            assert torch.equal(level, other)
    np.testing.assert_array_equal(store.read()[0], second.read()[0])


def test_a_pickled_store_carries_no_open_file(store):
    copy = pickle.loads(pickle.dumps(store))
    assert copy._reader is None
    np.testing.assert_array_equal(copy.read()[1], store.read()[1])


def test_a_store_is_replaced_on_demand_only_and_the_old_one_notices(tmp_path, store):
    unread = pickle.loads(pickle.dumps(store))
    with pytest.raises(UserError) as error:
        CodeWriter(store.path, **SETTINGS)
    one_line(error, "already", str(store.path), "--overwrite")
    new = write(store.path, [("train", [0, 1])], example(2, seed=1), overwrite=True)
    assert len(new) == len(CodeStore(store.path)) == 2
    for old in (store, unread):
        with pytest.raises(UserError) as error:
            old.read()
        one_line(error, str(store.path))


def test_an_interrupted_extraction_leaves_no_store_and_does_not_harm_the_old_one(tmp_path, store):
    given = example(11)

    def interrupted(path: Path) -> None:
        with CodeWriter(path, **SETTINGS, overwrite=True) as writer:
            writer.append(given["codes"], given["keys"], given["subjects"], "train", given["labels"])
            writer._commit()
            raise KeyboardInterrupt

    for path in (tmp_path / "new", store.path):
        with pytest.raises(KeyboardInterrupt):
            interrupted(path)
    for unfinished in (tmp_path / "new", tmp_path / "new.partial"):
        with pytest.raises(UserError) as error:
            CodeStore(unfinished)
        one_line(error, "unfinished", "new.partial", "Extract the codes again")
    assert len(CodeStore(store.path)) == 11
    write(tmp_path / "new", BATCHES, given).verify()
    assert not (tmp_path / "new.partial").exists()


def rewrite(path: Path, key: bytes, change: Any) -> None:
    """Change one record of a store (None removes it)."""
    with lmdb.open(str(path), lock=False, map_size=1 << 24) as env, env.begin(write=True) as transaction:
        value = change(transaction.get(key))
        transaction.delete(key) if value is None else transaction.put(key, value)


def in_json(**changes: Any) -> Any:
    return lambda value: json.dumps({**json.loads(value), **changes}).encode()


@pytest.mark.parametrize(
    ("key", "change", "says"),
    [
        (b"metadata", lambda value: None, "unfinished"),
        (b"metadata", lambda value: b"\x80\x04N.", "not a code store"),
        (b"metadata", lambda value: b"[1]", "not a code store"),
        (b"metadata", in_json(kind="other"), "not a code store"),
        (b"metadata", in_json(format=2, version="9.9"), "by vqvae2 9.9 in format 2, newer than the 1"),
        (b"metadata", in_json(count=12), "damaged"),
        (b"metadata", in_json(rows_per_value=0), "damaged"),
        (b"metadata", in_json(shapes=None), "damaged"),
        (b"metadata", in_json(attributes=[]), "damaged"),
        (b"codes/00000001", lambda value: None, "value 1 of the codes is missing"),
        (b"codes/00000001", lambda value: value[:-1], "bytes instead of"),
        (b"columns/00000002", lambda value: None, "value 2 of the columns is missing"),
        (b"columns/00000002", lambda value: value[:-1], "damaged"),
        (b"columns/00000002", lambda value: zlib.compress(b"{}"), "damaged"),
    ],
)
def test_a_store_whose_records_do_not_agree_is_refused_on_opening(tmp_path, key, change, says):
    write(tmp_path / "codes", BATCHES, example(11))
    rewrite(tmp_path / "codes", key, change)
    with pytest.raises(UserError) as error:
        CodeStore(tmp_path / "codes")
    one_line(error, says, str(tmp_path / "codes"))


def test_a_file_cut_short_anywhere_is_refused_on_opening(tmp_path):
    write(tmp_path / "codes", BATCHES, example(11))
    file = tmp_path / "codes" / "data.mdb"
    whole = file.read_bytes()
    for length in (0, 10, 4096, 8191, 8192, 12288, len(whole) // 2, len(whole) - 4096, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError) as error:
            CodeStore(tmp_path / "codes")
        one_line(error, str(tmp_path / "codes"), "Extract the codes again")
    file.write_bytes(whole)
    CodeStore(tmp_path / "codes").verify()


def test_foreign_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no codes"):
        CodeStore(tmp_path / "codes")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "data.mdb").write_text("not LMDB at all\n" * 1000)
    with pytest.raises(UserError, match="cannot read the codes"):
        CodeStore(tmp_path / "text")
    # As other programs store codes: one pickled row a key, and the number of rows.
    with lmdb.open(str(tmp_path / "rows"), lock=False) as env, env.begin(write=True) as transaction:
        transaction.put(b"0", pickle.dumps((np.zeros((2, 3)), np.zeros((4, 6)), "a.png")))
        transaction.put(b"length", b"1")
    with pytest.raises(UserError, match="is not a code store"):
        CodeStore(tmp_path / "rows")


def test_verify_finds_a_single_changed_bit_that_opening_cannot(tmp_path):
    write(tmp_path / "codes", BATCHES, example(11))
    rewrite(tmp_path / "codes", b"codes/00000001", lambda value: value[:-1] + bytes([value[-1] ^ 1]))
    store = CodeStore(tmp_path / "codes")
    with pytest.raises(UserError) as error:
        store.verify()
    one_line(error, "damaged at image 4", str(tmp_path / "codes"))


def test_verify_finds_codes_exchanged_together_with_their_checksum(tmp_path):
    write(tmp_path / "codes", BATCHES, example(11))

    def forge(value: bytes) -> bytes:
        table = json.loads(zlib.decompress(value))
        return zlib.compress(json.dumps({**table, "crc32": zlib.crc32(bytes(216))}).encode())

    rewrite(tmp_path / "codes", b"codes/00000001", lambda value: bytes(216))
    rewrite(tmp_path / "codes", b"columns/00000001", forge)
    with pytest.raises(UserError, match="fingerprint"):
        CodeStore(tmp_path / "codes").verify()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"codes": [np.full((2, 2, 3), 7), np.zeros((2, 4, 6), int)]}, "top codes must lie in"),
        ({"codes": [np.full((2, 2, 3), -1), np.zeros((2, 4, 6), int)]}, "top codes must lie in"),
        ({"codes": [np.zeros((2, 2, 3), int)]}, "the store holds"),
        ({"codes": [np.zeros((2, 2, 3), int), np.zeros((2, 6, 4), int)]}, "the store holds"),
        ({"codes": [np.zeros((2, 2, 3), int), np.zeros((1, 4, 6), int)]}, "the store holds"),
        ({"keys": ["a"]}, "1 keys"),
        ({"keys": ["a", "a"]}, "already"),
        ({"labels": [[0, 2], [0, 0]]}, "labels"),
        ({"labels": [[-2, 0], [0, 0]]}, "labels"),
        ({"labels": [0, 1]}, "labels"),
    ],
)
def test_codes_keys_and_labels_that_do_not_fit_are_programming_mistakes(tmp_path, change, says):
    batch = {**example(2), "split": "train", **change}
    with CodeWriter(tmp_path / "codes", **SETTINGS) as writer, pytest.raises(ValueError, match=says):
        writer.append(**batch)


def test_an_empty_store_is_a_store(tmp_path):
    store = write(tmp_path / "codes", [], example(0))
    assert len(store) == 0
    assert store.labels.shape == (0, 2)
    assert [level.shape for level in store.read()] == [(0, 2, 3), (0, 4, 6)]
    store.verify()


def append(writer: CodeWriter, rows: range, given: dict[str, Any]) -> None:
    new = [i for i in rows if ("train", given["keys"][i]) not in writer]
    writer.append(
        [level[new] for level in given["codes"]],
        [given["keys"][i] for i in new],
        [given["subjects"][i] for i in new],
        "train",
        given["labels"][new],
    )


def abandoned(path: Path, given: dict[str, Any], count: int, **changes: Any) -> None:
    """Write and commit the values that are full, and end as a killed process does: without closing anything."""
    writer = CodeWriter(path, **{**SETTINGS, "rows_per_value": 2, "plan": "plan", **changes})
    append(writer, range(count), given)
    writer._commit()
    writer._env.close()


def test_an_interrupted_writer_of_the_same_plan_is_gone_on_with(tmp_path):
    given = example(11)
    for path, count in ((tmp_path / "whole", 0), (tmp_path / "cut", 7)):
        if count:
            abandoned(path, given, count)
        with CodeWriter(path, **{**SETTINGS, "rows_per_value": 2, "plan": "plan"}) as writer:
            assert len(writer) == count // 2 * 2  # the seventh image filled no value
            for start in range(0, 11, 4):
                append(writer, range(start, min(start + 4, 11)), given)
    whole, cut = CodeStore(tmp_path / "whole"), CodeStore(tmp_path / "cut")
    cut.verify()
    assert (cut.keys, cut.subjects, cut.splits, cut.fingerprint) == (
        whole.keys,
        whole.subjects,
        whole.splits,
        whole.fingerprint,
    )
    for a, b in zip(whole.read(), cut.read(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "changes", [{"plan": "another"}, {"plan": None}, {"vqvae_sha256": "b" * 64}, {"data": {"height": 9}}]
)
def test_what_an_interrupted_writer_left_is_not_mixed_with_anything_else(tmp_path, changes):
    given = example(11)
    abandoned(tmp_path / "codes", given, 7)
    with CodeWriter(tmp_path / "codes", **{**SETTINGS, "rows_per_value": 2, "plan": "plan", **changes}) as writer:
        assert len(writer) == 0
        append(writer, range(3), given)
    assert CodeStore(tmp_path / "codes").keys == given["keys"][:3]


def spoil(path: Path, kind: bytes) -> None:
    """Change a bit of the second value."""
    env = lmdb.open(str(path), lock=False, map_size=1 << 20)
    with env, env.begin(write=True) as transaction:
        value = bytearray(transaction.get(kind + b"/00000001"))
        value[0] ^= 1
        transaction.put(kind + b"/00000001", bytes(value))


@pytest.mark.parametrize("kind", [b"codes", b"columns"])
@pytest.mark.parametrize("count", [7, 11])
def test_what_lies_before_a_damaged_value_is_gone_on_with(tmp_path, count, kind):
    given = example(11)
    settings = {**SETTINGS, "rows_per_value": 2, "plan": "plan"}
    abandoned(tmp_path / "codes", given, count)
    spoil(tmp_path / "codes.partial", kind)
    whole_then_cut(tmp_path, given, settings, 2)


def test_what_lies_before_the_last_smaller_value_is_gone_on_with(tmp_path):
    given = example(11)
    settings = {**SETTINGS, "rows_per_value": 2, "plan": "plan"}
    writer = CodeWriter(tmp_path / "codes", **settings)  # killed while it closed
    append(writer, range(11), given)
    writer._take_chunk()
    writer._commit()
    writer._env.close()
    whole_then_cut(tmp_path, given, settings, 10)


def whole_then_cut(folder: Path, given: dict[str, Any], settings: dict[str, Any], kept: int) -> None:
    """The interrupted store knows its first images, and ends as one that was written at once."""
    for name in ("whole", "codes"):
        with CodeWriter(folder / name, **settings) as writer:
            assert len(writer) == (kept if name == "codes" else 0)
            append(writer, range(11), given)
    whole, cut = CodeStore(folder / "whole"), CodeStore(folder / "codes")
    cut.verify()
    assert (cut.keys, cut.fingerprint) == (whole.keys, whole.fingerprint)
