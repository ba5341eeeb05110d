"""The data as later stages meet them: values, batches, stored configs, the report, sets without a folder."""

import json
import types

import numpy as np
import pytest
import torch
from pictures import ADNI, every, labels_of, picture, save, ten, write
from torch.utils.data import DataLoader

from vqvae2.data import DataConfig, ImageSet, as_stored, from_unit, load_images, open_data, to_unit
from vqvae2.errors import UserError


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 1023), (np.uint16, 65535)])
def test_every_stored_value_survives_the_way_to_unit_and_back(dtype, top):
    values = np.arange(top + 1, dtype=dtype)
    unit = to_unit(values, (0, top))
    assert unit.dtype == torch.float32
    np.testing.assert_allclose(unit.numpy(), values / top * 2 - 1, atol=2e-7)  # one rounding of float32 near 1
    back = from_unit(unit, (0, top))
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, values)


def test_values_beyond_the_range_are_clipped():
    np.testing.assert_array_equal(from_unit(torch.tensor([-1.5, 0.999, 2.0]), (0, 255)), [0, 255, 255])


@pytest.mark.parametrize("value_range", [(0, 255), (0, 65535), (16, 235)])
def test_as_stored_is_what_a_file_gives_back(value_range):
    x = torch.rand(1000, dtype=torch.float64) * 2.4 - 1.2
    back = to_unit(from_unit(x.clamp(-1, 1), value_range), value_range).double()
    torch.testing.assert_close(as_stored(x, value_range), back, atol=1e-6, rtol=0)


def test_a_batch_is_the_stack_of_its_items():
    images = picture(0, (5, 1, 4, 6))
    labels = np.arange(10).reshape(5, 2)
    held = ImageSet(images, list("abcde"), list("abcde"), labels, (0.0, 255.0))
    batch = held.__getitems__([3, 0, 3])
    items = [held[i] for i in (3, 0, 3)]
    assert torch.equal(batch["image"], torch.stack([item["image"] for item in items]))
    assert torch.equal(batch["label"], torch.stack([item["label"] for item in items]))
    assert batch["index"].tolist() == [item["index"] for item in items]
    loaded = next(iter(DataLoader(held, batch_size=5, collate_fn=lambda batch: batch)))
    np.testing.assert_allclose(loaded["image"].numpy(), images / 127.5 - 1, atol=2e-7)


@pytest.mark.parametrize(
    "fields",
    [
        {"size": "big"},
        {"size": "0x4"},
        {"size": "1x2x3"},
        {"channels": 2},
        {"phantom_images": 3},
        {"split_seed": -1},
    ],
)
def test_values_that_cannot_be_meant_are_refused(fields):
    with pytest.raises(UserError):
        DataConfig(**fields)


def test_only_the_wanted_splits_are_decoded(tmp_path):
    write(tmp_path, ["train/a_1.png", "train/b_1.png", "val/c_1.png"])
    assert list(open_data(DataConfig(data=str(tmp_path)), splits=["val"]).splits) == ["val"]
    with pytest.raises(UserError, match=r"no images in test.*There are train, selection, val"):
        open_data(DataConfig(data=str(tmp_path)), splits=["test"])
    with pytest.raises(UserError, match="no split tset"):
        open_data(DataConfig(data=str(tmp_path)), splits=["tset"])


def test_a_stored_config_keeps_size_channels_range_and_classes(tmp_path):
    folder = write(tmp_path / "a", [f"{c}/p{i}_{c}1.png" for c in ("ad", "nc") for i in range(6)])
    stored = json.loads(json.dumps(open_data(DataConfig(data=str(folder), size="12x10")).to_config()))
    other = tmp_path / "b"
    for i in range(8):
        save(other / f"q{i}_0.png", picture(i, (6, 6, 3)))
    data = open_data(DataConfig(data=str(other)), like=stored)
    assert (data.channels, data.height, data.width) == (1, 12, 10)
    assert data.attributes == {"class": ("ad", "nc")}
    assert all((part.labels == -1).all() for part in data.splits.values())


def test_a_plain_folder_is_read_like_the_training_data(tmp_path):
    stored = open_data(DataConfig(data=str(ten(tmp_path / "a")), size="10x12")).to_config()
    folder = write(tmp_path / "b", ["x.png", "y.png"])
    (folder / "z.png").write_bytes(b"")
    held = load_images(folder, stored)
    assert held.keys == ["x.png", "y.png"]
    assert [key for key, _ in held.skipped] == ["z.png"]
    np.testing.assert_array_equal(held.images[1, 0, 1:9, 2:10], picture(1))
    by_path = load_images([folder / "y.png"], stored)
    np.testing.assert_array_equal(by_path.images, held.images[1:])
    save(folder / "x.png", picture(0, dtype=np.uint16, top=60000))
    with pytest.raises(UserError, match="go up to 65535"):
        load_images([folder / "x.png"], stored)


def test_the_report_counts_images_subjects_and_labels_by_split(tmp_path):
    data = open_data(DataConfig(data=str(write(tmp_path, ADNI))))
    report = data.report()
    assert "train/test folders with class folders" in report
    assert "8 x 8 (height x width), grey" in report
    assert [line.split()[:3] for line in report.splitlines() if line.startswith("test ")] == [["test", "4", "2"]]
    assert "test: AD 2, NC 2" in report


def test_the_phantom_is_balanced_split_by_subject_and_repeatable():
    config = DataConfig(data="phantom", phantom_images=40, size="32x48")
    data = open_data(config)
    assert data.attributes == {"diagnosis": ("healthy", "atrophy")}
    assert sum(len(part) for part in data.splits.values()) == 40
    assert data.splits["train"].images.shape[1:] == (1, 32, 48)
    again = open_data(config, splits=["val"], like=data.to_config())
    np.testing.assert_array_equal(again.splits["val"].images, data.splits["val"].images)
    np.testing.assert_array_equal(again.splits["val"].labels, data.splits["val"].labels)
    with pytest.raises(UserError, match="32x32"):
        open_data(DataConfig(data="phantom", size="16x16"))


def fake_cifar(root: str, train: bool, download: bool) -> types.SimpleNamespace:
    count = 200 if train else 20
    images = picture(int(train), (count, 32, 32, 3))
    return types.SimpleNamespace(data=images, targets=[i % 3 for i in range(count)], classes=["cat", "dog", "eel"])


def test_torchvision_sets_keep_their_test_part_and_hold_val_out_of_the_rest(monkeypatch):
    monkeypatch.setattr("torchvision.datasets.CIFAR10", fake_cifar)
    data = open_data(DataConfig(data="torchvision:CIFAR10"))
    assert {split: len(part) for split, part in data.splits.items()}["test"] == 20
    assert {"train", "selection", "val", "test"} == set(data.splits)
    assert all(key.startswith("test/") == (split == "test") for split, part in data.splits.items() for key in part.keys)
    assert data.attributes == {"class": ("cat", "dog", "eel")}
    for key, image in every(data).items():
        part, index = key.split("/")
        np.testing.assert_array_equal(image, fake_cifar("", part == "train", False).data[int(index)].transpose(2, 0, 1))
        assert labels_of(data)[key] == [("cat", "dog", "eel")[int(index) % 3]]
        break
    assert open_data(DataConfig(data="torchvision:CIFAR10", size="40x40", channels=1)).splits["val"].images.shape[
        1:
    ] == (1, 40, 40)


def test_a_failed_download_and_an_unknown_set_are_one_line(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Error downloading\nthe set")

    monkeypatch.setattr("torchvision.datasets.MNIST", refuse)
    with pytest.raises(UserError, match="MNIST cannot be downloaded") as caught:
        open_data(DataConfig(data="torchvision:MNIST"))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="Choose of CIFAR10"):
        open_data(DataConfig(data="torchvision:ImageNet"))
