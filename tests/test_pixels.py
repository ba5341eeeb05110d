"""Images are decoded once, kept whole or not at all, and are the same wherever they lie."""

import errno
import io
import multiprocessing
import os
import pickle
import platform
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from pictures import every, picture, ten
from PIL import Image
from processes import Started

from vqvae2 import files
from vqvae2.__main__ import main as command
from vqvae2.data import DataConfig, decoding, load_images, open_data, pixel_writer, pixels, pools, storage
from vqvae2.data.decoding import decode
from vqvae2.data.duplicates import near_candidates, nearly_equal, pooled
from vqvae2.data.pixel_file import Decoded, Mapped, PixelFile, Slots
from vqvae2.data.pixels import Files, read_pixels
from vqvae2.data.pools import processes_pay
from vqvae2.errors import UserError
from vqvae2.stages.evaluated import _joined


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("VQVAE2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def paths_of(folder: Path, images: list) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03d}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def read(paths: list[Path], **more) -> PixelFile:
    return read_pixels(Files(paths, "here"), more.pop("size", None), "shrink", **more)


def forbid_decoding(monkeypatch) -> None:
    monkeypatch.setattr(pixels, "read_all", lambda *_: pytest.fail("decoded again"))


def test_a_second_opening_decodes_nothing_and_is_the_same(tmp_path, monkeypatch):
    folder = ten(tmp_path / "data", 40)
    first = open_data(DataConfig(data=str(folder)))
    forbid_decoding(monkeypatch)
    second = open_data(DataConfig(data=str(folder)))
    assert second.report() == first.report()
    assert second.to_config() == first.to_config()
    for key, image in every(first).items():
        assert_array_equal(every(second)[key], image)
        assert_array_equal(image[0], decode(folder / key).pixels)


@pytest.mark.parametrize("where", ["file", "memory"])
def test_grey_images_before_the_first_coloured_one_become_rgb(tmp_path, cache, where):
    images = [*(picture(i, (12, 10)) for i in range(70)), picture(99, (12, 10, 3)), picture(98, (12, 10))]
    if where == "memory":
        cache.touch()
    found = read(paths_of(tmp_path / "data", images))
    assert isinstance(found.images, Mapped) == (where == "file")
    assert found.images.shape == (72, 3, 12, 10)
    for stored, image in zip(found.images, images, strict=True):
        assert_array_equal(stored, image.transpose(2, 0, 1) if image.ndim == 3 else np.stack([image] * 3))
    assert found.index["coloured"].tolist() == [False] * 70 + [True, False]


def test_grey_images_serve_as_rgb_and_rgb_as_grey(tmp_path):
    paths = paths_of(tmp_path / "grey", [picture(i, (9, 8)) for i in range(3)])
    grey = read(paths)
    assert_array_equal(grey.in_channels(3)[1], np.stack([picture(1, (9, 8))] * 3))
    assert_array_equal(pickle.loads(pickle.dumps(grey.in_channels(3)))[[2, 0]], grey.in_channels(3)[[2, 0]])
    coloured = paths_of(tmp_path / "colour", [picture(i, (9, 8, 3)) for i in range(3)])
    assert read(coloured, grey=True).images.shape == (3, 1, 9, 8)
    assert read(coloured).images.shape == (3, 3, 9, 8)


def test_asking_for_grey_finds_grey_images_that_were_read_without_asking(tmp_path, monkeypatch):
    paths = paths_of(tmp_path / "data", [picture(i, (9, 8)) for i in range(3)])
    read(paths)
    forbid_decoding(monkeypatch)
    assert read(paths, grey=True).images.shape == (3, 1, 9, 8)


def test_a_later_stage_that_knows_size_and_colours_decodes_nothing(tmp_path, monkeypatch):
    for name, shape in (("grey", (16, 16)), ("colour", (16, 16, 3))):
        for size in (None, "16x16", "8x8"):
            paths_of(tmp_path / name, [picture(i, shape) for i in range(12)])
            config = DataConfig(data=str(tmp_path / name), size=size, subject_pattern=".+")
            first = open_data(config)
            with monkeypatch.context() as patch:
                forbid_decoding(patch)
                again = open_data(config, ["train", "val"], like=first.to_config())
            assert_array_equal(again.splits["train"].images[:], first.splits["train"].images[:])


def test_changed_added_and_removed_files_are_noticed(tmp_path):
    paths = paths_of(tmp_path / "data", [picture(i, (9, 8)) for i in range(4)])
    read(paths)
    Image.fromarray(picture(7, (9, 8))).save(paths[2])
    assert_array_equal(read(paths).images[2][0], picture(7, (9, 8)))
    assert len(read(paths[:3]).images) == 3
    more = paths_of(tmp_path / "more", [picture(8, (9, 8))])
    assert_array_equal(read([*paths, *more]).images[4, 0], picture(8, (9, 8)))
    assert_array_equal(read(paths[::-1]).images[0, 0], picture(3, (9, 8)))  # keys are in another order


def test_what_cannot_be_read_is_remembered(tmp_path, monkeypatch):
    paths = paths_of(tmp_path / "data", [picture(i, (9, 8)) for i in range(3)])
    paths[1].write_bytes(b"no image")
    first = read(paths)
    forbid_decoding(monkeypatch)
    again = read(paths)
    assert again.skipped == first.skipped == [(1, "not an image in a format that is read")]
    assert again.index["item"].tolist() == [0, 2]


def test_a_copy_for_another_process_holds_no_pixels(tmp_path):
    paths = paths_of(tmp_path / "data", [picture(i, (60, 80)) for i in range(20)])
    images = read(paths).images
    assert len(pickle.dumps(images)) < 1000
    assert_array_equal(pickle.loads(pickle.dumps(images))[3], images[3])


def test_without_room_on_the_disk_images_are_decoded_when_asked_for(tmp_path, monkeypatch, cache):
    folder = ten(tmp_path / "data", 40)
    usual = open_data(DataConfig(data=str(folder)))
    shutil.rmtree(cache)
    monkeypatch.setattr(pixel_writer, "DISK_SHARE", 0.0)
    data = open_data(DataConfig(data=str(folder)))
    train = data.splits["train"]
    assert isinstance(train.images, Decoded)
    assert not list(cache.rglob("pixels/*/pixels"))
    assert data.report() == usual.report()
    rows = [5, 0, 7]
    assert (train.at(rows) == usual.splits["train"].at(rows)).all()
    assert_array_equal(train.images[2:6], usual.splits["train"].images[2:6])
    assert_array_equal(train.images[np.array(rows)], usual.splits["train"].images[np.array(rows)])
    forbid_decoding(monkeypatch)  # the index is kept
    assert open_data(DataConfig(data=str(folder))).report() == usual.report()
    (folder / train.keys[0]).unlink()
    with pytest.raises(UserError, match="can no longer be read"):
        train.images[0]


def test_a_disk_that_is_full_in_the_midst_is_done_without(tmp_path, monkeypatch, cache):
    paths = paths_of(tmp_path / "data", [picture(i, (9, 8)) for i in range(8)])

    class Full(io.FileIO):
        def write(self, content) -> int:
            if self.tell() > 200:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(content)

    plain = open
    monkeypatch.setattr(
        pixel_writer,
        "open",
        lambda path, mode="r": Full(path, "w+") if mode == "w+b" else plain(path, mode),
        raising=False,
    )
    found = read(paths)
    assert isinstance(found.images, Decoded)
    assert_array_equal(found.images[6][0], picture(6, (9, 8)))
    assert not list(cache.rglob(".*.tmp"))


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, cache):
    cache.touch()
    paths = paths_of(tmp_path / "data", [picture(i, (9, 8)) for i in range(8)])
    assert isinstance(read(paths).images, np.ndarray)
    assert_array_equal(read(paths).images[3][0], picture(3, (9, 8)))
    monkeypatch.setattr(pixel_writer, "memory_limit", lambda: 200)
    found = read(paths)
    assert isinstance(found.images, Decoded)
    assert_array_equal(found.images[3][0], picture(3, (9, 8)))


class Interruption(Exception):  # noqa: N818 - no error
    """Ends a reading in the midst."""


@pytest.mark.parametrize("at", range(6))
def test_what_was_interrupted_leaves_nothing_and_is_begun_anew(tmp_path, monkeypatch, cache, at):
    paths = paths_of(tmp_path / "data", [picture(i, (9, 8)) for i in range(6)])
    inner = pixels.read_all

    def interrupted(*arguments):
        for index, result in inner(*arguments):
            if index == at:
                raise Interruption
            yield index, result

    monkeypatch.setattr(pixels, "read_all", interrupted)
    with pytest.raises(Interruption):
        read(paths)
    assert [path for path in (cache / "pixels").iterdir() if path.suffix != ".lock"] == []
    monkeypatch.setattr(pixels, "read_all", inner)
    assert len(read(paths).images) == 6


def test_what_a_killed_process_left_is_removed(tmp_path, cache):
    paths = paths_of(tmp_path / "data", [picture(i, (9, 8)) for i in range(6)])
    read(paths)
    (whole,) = (path for path in (cache / "pixels").iterdir() if path.is_dir())
    left = whole.with_name(f".{whole.name}.{re.sub(r'[^a-zA-Z0-9_]', '-', platform.node())}.1.tmp")
    whole.rename(left)
    assert len(read(paths).images) == 6
    assert not left.exists()


@pytest.mark.parametrize("name", ["pixels", "index.npy", "about.json"])
@pytest.mark.parametrize("damage", ["cut", "absent"])
def test_a_damaged_file_is_made_again(tmp_path, cache, name, damage):
    paths = paths_of(tmp_path / "data", [picture(i, (9, 8)) for i in range(6)])
    read(paths)
    (file,) = (cache / "pixels").glob(f"*/{name}")
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-3])
    else:
        file.unlink()
    assert_array_equal(read(paths).images[5][0], picture(5, (9, 8)))


def test_two_processes_at_once_decode_each_image_once(tmp_path):
    paths_of(tmp_path / "data", [picture(i, (64, 64)) for i in range(200)])
    both = [Started(count_decoded, tmp_path / "data").wait for _ in range(2)]
    assert sum(int(wait().out) for wait in both) == 200


def count_decoded(folder: Path) -> None:
    """Print how many images are decoded where a folder is opened."""
    inner, count = decoding._pixels, []
    decoding._pixels = lambda file: (count.append(0), inner(file))[1]
    open_data(DataConfig(data=str(folder)))
    print(len(count))


def use_processes(monkeypatch) -> None:
    monkeypatch.setattr(pixels, "_MANY", 10)
    monkeypatch.setattr(pixels, "processes_pay", lambda: True)
    monkeypatch.setattr(pixels, "read_all", lambda *_: pytest.fail("threads"))


@pytest.mark.parametrize(
    ("bad", "coloured", "room"),
    [
        ((), range(0), True),
        ((0,), range(20, 30), True),
        ((3, 4, 29), range(30), True),
        ((0, 4, 29), [8], True),  # which is not among those looked at
        (tuple(range(30)), range(0), True),
        ((), [8], False),
        ((3, 4, 29), range(20, 30), False),
    ],
)
def test_many_files_are_decoded_by_processes_to_the_same(tmp_path, monkeypatch, cache, bad, coloured, room):
    paths = paths_of(tmp_path / "data", [picture(i, (12, 10, 3) if i in coloured else (12, 10)) for i in range(30)])
    for i in bad:
        paths[i].write_bytes(b"no image")
    by_threads = read(paths)
    shutil.rmtree(cache)
    if len(bad) < len(paths):  # else none tells the shape of all
        use_processes(monkeypatch)
    if not room:
        monkeypatch.setattr(pixel_writer, "DISK_SHARE", 0.0)
    by_processes = read(paths)
    assert by_processes.index.tobytes() == by_threads.index.tobytes()
    assert by_processes.skipped == by_threads.skipped
    assert [item for item, _ in by_threads.skipped] == list(bad)
    if len(bad) == 30:
        assert by_processes.images is by_threads.images is None
        return
    assert isinstance(by_processes.images, Mapped if room else Decoded)
    assert_array_equal(by_processes.images[:], by_threads.images[:])
    assert not list(cache.rglob(".*.tmp"))
    monkeypatch.setattr(pixels, "read_by_processes", lambda *_: pytest.fail("decoded again"))
    if room:
        assert_array_equal(read(paths).images[:], by_threads.images[:])


@pytest.mark.parametrize("other", [(12, 8), (12, 10, 3)])
def test_processes_read_images_of_other_sizes_and_keep_no_pixels_of_them(tmp_path, monkeypatch, cache, other):
    images = [picture(i, other if i == 8 else (9, 8)) for i in range(30)]
    paths = paths_of(tmp_path / "data", images)
    by_threads = read(paths)
    use_processes(monkeypatch)
    shutil.rmtree(cache)
    by_processes = read(paths)
    assert by_processes.images is by_threads.images is None
    assert by_processes.index.tobytes() == by_threads.index.tobytes()


def test_processes_that_meet_a_full_disk_go_on_without_pixels(tmp_path, monkeypatch, cache):
    paths = paths_of(tmp_path / "data", [picture(i, (9, 8)) for i in range(30)])
    use_processes(monkeypatch)
    take = Slots.take

    def full(self, item: int, pixels) -> bool:
        if item == 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return take(self, item, pixels)

    monkeypatch.setattr(Slots, "take", full)
    found = read(paths)
    assert isinstance(found.images, Decoded)
    assert_array_equal(found.images[20][0], picture(20, (9, 8)))
    assert not list(cache.rglob(".*.tmp"))
    assert not list(cache.rglob("pixels/*/pixels"))


def test_images_are_read_by_processes_only_where_these_can_be_forked_and_can_wait_for_each_other(monkeypatch):
    monkeypatch.setattr(pools, "cores", lambda: 2)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "fork")
    assert processes_pay()
    with monkeypatch.context() as patch:
        patch.setattr(multiprocessing, "get_start_method", lambda allow_none: "spawn")
        assert not processes_pay()

    def no_semaphores() -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(multiprocessing, "Lock", no_semaphores)
    assert not processes_pay()


def test_many_files_are_read_by_threads_where_the_cache_cannot_be_written(tmp_path, monkeypatch, cache):
    cache.touch()
    paths = paths_of(tmp_path / "data", [picture(i, (9, 8)) for i in range(30)])
    monkeypatch.setattr(pixels, "_MANY", 10)
    monkeypatch.setattr(pixels, "processes_pay", lambda: True)
    assert_array_equal(read(paths).images[29][0], picture(29, (9, 8)))


@pytest.mark.parametrize("many", [False, True], ids=["threads", "processes"])
@pytest.mark.parametrize("moment", [0, 20, "index.npy", "rename"])
def test_a_reading_that_is_killed_at_any_moment_is_begun_anew(tmp_path, cache, moment, many):
    paths = paths_of(tmp_path / "data", [picture(i, (12, 10, 3) if i == 8 else (12, 10)) for i in range(30)])
    killed = Started(read_until_killed, paths, moment, many).wait()
    assert killed.code == -signal.SIGKILL, killed.err
    found = read(paths)
    assert [path.suffix for path in (cache / "pixels").iterdir() if path.name.startswith(".")] == [".lock"]
    shutil.rmtree(cache)
    assert found.index.tobytes() == read(paths).index.tobytes()
    assert_array_equal(found.images[:], read(paths).images[:])


def read_until_killed(paths: list[Path], moment: int | str, many: bool) -> None:
    """Read files, and die when so many are decoded or this part of the cache is to be written."""

    def die(*_: object) -> None:
        os.killpg(0, signal.SIGKILL)

    if isinstance(moment, int):
        inner, count = decoding._pixels, multiprocessing.Value("i", 0)

        def counted(file):
            with count:
                count.value += 1
                if count.value > moment:
                    die()
            return inner(file)

        decoding._pixels = counted
    elif moment == "rename":
        pixel_writer.os.replace = die
    else:
        for name in ("write_atomic", "write_json"):
            write = getattr(files, name)
            setattr(files, name, lambda path, *rest, write=write: die() if path.name == moment else write(path, *rest))
    if many:
        multiprocessing.set_start_method("fork", force=True)
        pixels._MANY, pixels.processes_pay = 10, lambda: True
    read(paths)


def test_sizes_that_differ_are_told_with_their_counts(tmp_path):
    paths_of(tmp_path / "data", [picture(i, (9, 8) if i % 3 else (12, 8)) for i in range(12)])
    with pytest.raises(UserError, match="images differ in size") as error:
        open_data(DataConfig(data=str(tmp_path / "data")))
    assert "9x8 (8), 12x8 (4)" in str(error.value)


def test_files_by_their_paths_are_read_like_a_folder(tmp_path):
    folder = ten(tmp_path / "data")
    data = open_data(DataConfig(data=str(folder)))
    keys = sorted(every(data))
    loaded = load_images([folder / key for key in keys], data.to_config())
    for row, key in enumerate(keys):
        assert_array_equal(loaded.images[row], every(data)[key])


def test_the_memory_limit_is_a_share_of_the_container_s_and_of_the_processes_on_it(tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    machine = tmp_path / "memory.max"
    machine.write_text("max\n")
    monkeypatch.setattr(storage, "_CGROUP_LIMITS", (machine, tmp_path / "absent"))
    assert storage.memory_limit() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 8
    machine.write_text("800000\n")
    assert storage.memory_limit() == 100_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert storage.memory_limit() == 25_000


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.02))
def test_every_near_copy_is_among_the_candidates(seed, noise):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(24, 32, 32)) + 3 * rng.normal(size=(24, 32, 1))
    others = images[:12] + noise * 30 * rng.normal(size=(12, 32, 32))
    both = [
        (x - x.mean((1, 2), keepdims=True)).astype(np.float32)
        / np.linalg.norm(x - x.mean((1, 2), keepdims=True), axis=(1, 2))[:, None, None].astype(np.float32)
        for x in (others, images)
    ]
    candidates = {(row, int(j)) for row, found in near_candidates(pooled(both[0]), pooled(both[1])) for j in found}
    assert set(nearly_equal(*both)) <= candidates
    if noise < 1e-3:
        assert len(candidates) >= 12


def test_the_cache_is_listed_and_removed(tmp_path, cache, capsys):
    assert command(["cache"]) == 0
    assert "nothing is kept" in capsys.readouterr().out
    read(paths_of(tmp_path / "data", [picture(i, (9, 8)) for i in range(6)]))
    read(paths_of(tmp_path / "data", [picture(i, (9, 8)) for i in range(4)]))
    assert command(["cache"]) == 0
    listed = capsys.readouterr().out
    assert "6 images of 9 x 8 of here" in listed
    assert "4 images of 9 x 8 of here" in listed
    name = listed.splitlines()[1].split()[0]
    assert command(["cache", "--remove", name]) == 0
    assert not (cache / "pixels" / name).exists()
    assert command(["cache", "--older-than", "1"]) == 0
    assert len([path for path in (cache / "pixels").iterdir() if path.is_dir()]) == 1
    capsys.readouterr()
    assert command(["cache", "--remove", "nonsense"]) == 2
    assert "there is no nonsense" in capsys.readouterr().err
    assert command(["cache", "--remove", "all"]) == 0
    assert [path for path in (cache / "pixels").iterdir() if path.suffix != ".lock"] == []


def test_processes_that_load_batches_get_the_same_images(tmp_path):
    data = open_data(DataConfig(data=str(ten(tmp_path / "data", 40))))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        batch = pool.apply(data.splits["train"].__getitems__, ([3, 1],))
    assert (batch["image"] == data.splits["train"].at([3, 1])).all()


def test_joined_splits_are_the_images_of_each_in_turn_and_no_copy(tmp_path):
    paths_of(tmp_path / "data", [picture(i, (16, 16)) for i in range(24)])
    data = open_data(DataConfig(data=str(tmp_path / "data"), subject_pattern=".+"))
    sets = list(data.splits.values())
    whole = _joined(sets, [])
    expected = np.concatenate([np.asarray(one.images) for one in sets])
    assert all(part is one.images for part, one in zip(whole.images.parts, sets, strict=True))
    rows = np.random.default_rng(0).permutation(24)[:9]
    for chosen in (slice(None), slice(3, 20, 4), slice(5, 5), rows, rows.tolist(), 0, 23):
        assert_array_equal(whole.images[chosen], expected[chosen])
    assert_array_equal(pickle.loads(pickle.dumps(whole)).images[rows], expected[rows])
    assert whole.span == (int(expected.min()), int(expected.max()))
    assert whole.digests == [digest for one in sets for digest in one.digests]
    assert_array_equal(whole.some(rows).images, expected[rows])
