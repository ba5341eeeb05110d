"""Images that outgrow the memory lie in mapped files, and are the same."""

import errno
import os

import numpy as np
import pytest
from pictures import every, picture, ten

from vqvae2.data import DataConfig, load_images, open_data, storage
from vqvae2.errors import UserError


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A machine that holds 500 bytes of pixels; returns its cache folder."""
    monkeypatch.setattr(storage, "memory_limit", lambda: 500)
    monkeypatch.setattr(storage, "_BLOCK", 400)
    monkeypatch.setenv("VQVAE2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_images_are_the_same_in_mapped_files(tmp_path, request):
    folder = ten(tmp_path / "data", 40)
    usual = open_data(DataConfig(data=str(folder)))
    request.getfixturevalue("small")
    data = open_data(DataConfig(data=str(folder)))
    assert isinstance(data.splits["train"].images, np.memmap)
    assert not isinstance(usual.splits["train"].images, np.memmap)
    assert data.to_config() == usual.to_config()
    assert data.report() == usual.report()
    for key, image in every(usual).items():
        np.testing.assert_array_equal(every(data)[key], image)
    rows = [5, 0, 7]
    batch, same = data.splits["train"].__getitems__(rows), usual.splits["train"].__getitems__(rows)
    assert (batch["image"] == same["image"]).all()
    assert list((tmp_path / "cache").iterdir()) == []  # the files have no name
    read = load_images(folder, usual.to_config())
    assert isinstance(read.images, np.memmap)


@pytest.mark.usefixtures("small")
def test_each_array_keeps_its_values_type_and_shape():
    held = storage.PixelStore()
    given = [picture(i, (9 - i, 7)) for i in range(5)] + [picture(9, (30, 40), 60000, np.uint16), picture(8, (3, 5, 3))]
    kept = [held.keep(pixels) for pixels in given]
    assert kept[0] is given[0]
    assert all(isinstance(pixels, np.memmap) for pixels in kept[-2:])
    for was, now in zip(given, kept, strict=True):
        assert now.dtype == was.dtype
        np.testing.assert_array_equal(now, was)
    assert held.keep(kept[-1]) is kept[-1]


def test_the_limit_is_a_share_of_the_container_s_memory_and_of_the_processes_on_it(tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    machine = tmp_path / "memory.max"
    machine.write_text("max\n")
    monkeypatch.setattr(storage, "_CGROUP_LIMITS", (machine, tmp_path / "absent"))
    assert storage.memory_limit() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 8
    machine.write_text("800000\n")
    assert storage.memory_limit() == 100_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert storage.memory_limit() == 25_000
    assert not isinstance(storage.empty((10, 10), np.uint8), np.memmap)
    assert isinstance(storage.empty((300, 100), np.uint8), np.memmap)


def test_a_full_disk_is_told_in_one_line(small, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="no room for images that outgrow the memory") as error:
        storage.empty((30, 30), np.uint8)
    assert "No space left on device" in str(error.value)
    assert "VQVAE2_CACHE" in str(error.value)
    assert list(small.iterdir()) == []
