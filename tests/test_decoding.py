"""Reading image files: formats, depths, colours, orientation, sizes, and what cannot be read."""

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures import every, picture, save, ten, write
from PIL import Image

from vqvae2.data import DataConfig, decoding, open_data
from vqvae2.data.decoding import decode, fit
from vqvae2.errors import UserError
from vqvae2.stages import train_vqvae

pytest_plugins = ["tiny_run_fixtures"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.bmp", {}),
        ("a.TIF", {}),
        ("a.tiff", {"compression": "tiff_lzw"}),
        ("a.webp", {"lossless": True}),
    ],
)
@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 3)])
def test_lossless_formats_are_read_to_the_last_bit(tmp_path, name, options, shape):
    pixels = picture(1, shape)
    np.testing.assert_array_equal(decode(save(tmp_path / name, pixels, **options)).pixels, pixels)


def test_jpeg_is_read_nearly(tmp_path):
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    assert np.abs(decode(save(tmp_path / "a.jpeg", smooth, quality=95)).pixels.astype(int) - smooth).max() <= 4


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_read_to_the_last_bit(tmp_path, name):
    pixels = picture(1, (7, 9), 65536, np.uint16)
    read = decode(save(tmp_path / name, pixels)).pixels
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, pixels)


def test_palette_alpha_and_bilevel_become_plain_colours_and_greys(tmp_path):
    grey, colour = picture(1), picture(2, (8, 8, 3))
    alpha = picture(3)[..., None]
    palette = Image.fromarray(grey).convert("P")
    palette.putpalette([value for k in range(256) for value in (255 - k, k, 7)])
    palette.save(tmp_path / "palette.png")
    save(tmp_path / "rgba.png", np.concatenate([colour, alpha], 2))
    save(tmp_path / "la.png", np.concatenate([grey[..., None], alpha], 2))
    Image.fromarray(grey > 127).save(tmp_path / "bilevel.png")
    index = np.asarray(palette)
    expected = np.stack([255 - index, index, np.full_like(index, 7)], 2)
    np.testing.assert_array_equal(decode(tmp_path / "palette.png").pixels, expected)
    on_black = np.rint(colour * (alpha / 255)), np.rint(grey * (alpha[..., 0] / 255))
    np.testing.assert_allclose(decode(tmp_path / "rgba.png").pixels, on_black[0], atol=1)
    np.testing.assert_allclose(decode(tmp_path / "la.png").pixels, on_black[1], atol=1)
    np.testing.assert_array_equal(decode(tmp_path / "bilevel.png").pixels, np.where(grey > 127, 255, 0))


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_undone(tmp_path, orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", picture(0, (4, 6)), exif=exif.tobytes())
    np.testing.assert_array_equal(decode(path).pixels, np.rot90(picture(0, (4, 6)), turns))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_is_turned_whether_or_not_it_is_compressed(tmp_path, dtype, compression):
    pixels = picture(0, (4, 6), dtype=dtype)
    path = save(tmp_path / "a.tif", pixels, compression=compression, tiffinfo={0x0112: 6})
    np.testing.assert_array_equal(decode(path).pixels, np.rot90(pixels, 3))


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.uint16, 65535)])
def test_a_tiff_in_which_zero_is_white_is_inverted(tmp_path, dtype, white):
    pixels = picture(0, (4, 6), dtype=dtype)
    save(tmp_path / "a.tif", pixels)
    with Image.open(tmp_path / "a.tif") as file:
        assert file.tag_v2[262] == 1
    content = bytearray((tmp_path / "a.tif").read_bytes())
    place = content.index(struct.pack("<HHI", 262, 3, 1))
    content[place + 8 : place + 10] = struct.pack("<H", 0)
    (tmp_path / "a.tif").write_bytes(content)
    np.testing.assert_array_equal(decode(tmp_path / "a.tif").pixels, white - pixels)


def test_scaling_up_does_not_leave_the_range_of_values():
    pixels = np.zeros((8, 8), np.uint16)
    pixels[2:6, 2:6] = 4095
    assert fit(pixels, (32, 32), "resize").max() == 4095


def test_grey_stored_as_rgb_is_grey_unless_one_picture_has_colour(tmp_path):
    for i in range(10):
        save(tmp_path / f"p{i}_0.png", np.repeat(picture(i)[..., None], 3, 2))
    data = open_data(DataConfig(data=str(tmp_path)))
    assert data.channels == 1
    np.testing.assert_array_equal(every(data)["p3_0.png"], picture(3)[None])
    assert open_data(DataConfig(data=str(tmp_path), channels=3)).channels == 3

    save(tmp_path / "q_0.png", picture(99, (8, 8, 3)))
    data = open_data(DataConfig(data=str(tmp_path)))
    assert data.channels == 3
    np.testing.assert_array_equal(every(data)["p3_0.png"], np.repeat(picture(3)[None], 3, 0))
    np.testing.assert_array_equal(every(data)["q_0.png"], picture(99, (8, 8, 3)).transpose(2, 0, 1))
    grey = every(open_data(DataConfig(data=str(tmp_path), channels=1)))["q_0.png"][0]
    luminance = picture(99, (8, 8, 3)) @ [0.299, 0.587, 0.114]
    assert np.abs(grey - luminance).max() <= 1


@pytest.mark.parametrize(("top", "expected"), [(900, 1023), (4000, 4095), (60000, 65535)])
def test_sixteen_bit_files_range_over_the_fewest_bits_that_hold_them(tmp_path, top, expected):
    for i in range(10):
        save(tmp_path / f"p{i}_0.png", picture(i, top=top, dtype=np.uint16))
    data = open_data(DataConfig(data=str(tmp_path)))
    assert data.value_range == (0, expected)
    part = data.splits["train"]
    np.testing.assert_allclose(part[0]["image"].numpy(), part.images[0] / expected * 2 - 1, atol=2e-7)


def test_eight_and_sixteen_bit_files_are_not_mixed(tmp_path):
    save(ten(tmp_path) / "q_0.png", picture(0, dtype=np.uint16))
    with pytest.raises(UserError, match=r"1 images have 16 bits and 10 have 8"):
        open_data(DataConfig(data=str(tmp_path)))


def test_colours_of_sixteen_bits_are_read_by_their_upper_eight_and_told(tmp_path):
    for i in range(10):
        (tmp_path / f"p{i}_0.png").write_bytes(png_of_wide_colours(picture(i, (16, 16, 3), 65536, np.uint16)))
    data = open_data(DataConfig(data=str(tmp_path)))
    assert any("10 images have 16 bits a colour" in note for note in data.notes)
    expected = picture(4, (16, 16, 3), 65536, np.uint16).transpose(2, 0, 1) >> 8
    np.testing.assert_array_equal(every(data)["p4_0.png"], expected)
    assert not decode(save(tmp_path / "plain.png", picture(0, (16, 16, 3)))).halved
    (tmp_path / "wide.ppm").write_bytes(b"P6 2 1 65535\n" + bytes(range(12)))
    assert decode(tmp_path / "wide.ppm").halved


def png_of_wide_colours(pixels: np.ndarray) -> bytes:
    """An RGB PNG with 16 bits a colour, which Pillow cannot write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def hostile(folder: Path) -> dict[str, str]:
    """Files that cannot be read, each with a word of the reason that must be told."""
    whole = save(folder / "whole_0.png", picture(0, (64, 64))).read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "broken.png").write_bytes(whole[:60] + b"\0" * 40 + whole[100:])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("not a picture")
    (folder / "folder.png").mkdir()
    (folder / "dangling.png").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.png")
    Image.fromarray(picture().astype(np.float32)).save(folder / "float.tif")
    Image.fromarray(picture()).save(folder / "pages.tif", save_all=True, append_images=[Image.fromarray(picture(1))])
    for name, side in (("bomb.png", 30_000), ("large.png", 9_000)):
        head = b"IHDR" + struct.pack(">II", side, side) + whole[24:29]
        (folder / name).write_bytes(whole[:12] + head + struct.pack(">I", zlib.crc32(head)) + whole[33:])
    (folder / "whole_0.png").unlink()
    return {
        "cut.png": "truncated",
        "broken.png": "",
        "empty.jpg": "empty",
        "text.png": "not an image",
        "dangling.png": "regular",
        "pipe.png": "regular",
        "float.tif": "floating",
        "pages.tif": "2 pictures",
        "bomb.png": "",
        "large.png": "pixels",
    }


def test_unreadable_files_are_left_out_and_reported_with_the_reason(tmp_path):
    reasons = hostile(tmp_path)
    with pytest.raises(UserError, match="none of 10 images can be read"):
        open_data(DataConfig(data=str(tmp_path)))
    data = open_data(DataConfig(data=str(ten(tmp_path))))
    assert len(every(data)) == 10
    told = dict(data.skipped)
    assert told.keys() == reasons.keys()
    for name, word in reasons.items():
        assert told[name]
        assert word in told[name]
        assert name in data.report()


def test_odd_names_are_read_and_can_be_stored(tmp_path):
    names = ["Größe ä_1.png", "two\nlines_2.png", "blank s_3.png", "脳_4.png"]
    write(tmp_path, names)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/byte\xff_5.png")).write_bytes((tmp_path / names[0]).read_bytes())
    keys = list(every(open_data(DataConfig(data=str(tmp_path)))))
    assert sorted(keys) == sorted([*names, "byte\\udcff_5.png"])
    json.dumps(keys).encode()
    "".join(keys).encode()


def test_images_of_several_sizes_are_refused_by_name_of_the_sizes(tmp_path):
    save(ten(tmp_path) / "q_0.png", picture(0, (6, 10)))
    with pytest.raises(UserError, match=r"8x8 \(10\), 6x10 \(1\).*--size 8x8"):
        open_data(DataConfig(data=str(tmp_path)))
    data = open_data(DataConfig(data=str(tmp_path), size="8x12"))
    assert (data.height, data.width) == (8, 12)
    assert "10 of 8 x 8, 1 of 6 x 10" in data.report()


@pytest.mark.parametrize("shape", [(5, 7), (6, 6), (5, 7, 3)])
def test_padding_puts_zeros_around(shape):
    pixels = picture(1, shape)
    fitted = fit(pixels, (8, 8), "pad")
    top, left = (8 - shape[0]) // 2, (8 - shape[1]) // 2
    inside = fitted[top : top + shape[0], left : left + shape[1]]
    np.testing.assert_array_equal(sorted(inside.ravel()), sorted(pixels.ravel()))
    assert fitted.astype(int).sum() == pixels.astype(int).sum()


def test_cropping_takes_the_middle_by_the_right_axes():
    pixels = np.arange(100, dtype=np.uint8).reshape(10, 10)
    np.testing.assert_array_equal(fit(pixels, (4, 8), "crop"), pixels[3:7, 1:9])
    tall = fit(pixels, (12, 2), "crop")
    np.testing.assert_array_equal(tall[1:11], pixels[:, 4:6])
    assert not tall[[0, 11]].any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_resizing_keeps_the_shape_and_black_stays_black(dtype):
    pixels = np.zeros((64, 32), dtype)
    pixels[16:48, 8:24] = 200  # a centred rectangle of half the height and half the width
    fitted = fit(pixels, (32, 32), "resize")
    assert fitted.dtype == dtype
    rows, columns = np.nonzero(fitted > 100)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 23, 12, 19)
    assert not fitted[:6].any()
    assert not fitted[:, :10].any()


def test_resizing_by_a_whole_factor_is_nearly_the_mean_of_blocks():
    pixels = np.add.outer(np.arange(64), 2 * np.arange(64)).astype(np.uint8)
    means = pixels.reshape(16, 4, 16, 4).mean((1, 3))
    assert np.abs(fit(pixels, (16, 16), "resize")[1:-1, 1:-1] - means[1:-1, 1:-1]).max() <= 1


def test_a_file_that_may_not_be_read_is_reported_and_passed_by(tmp_path, monkeypatch):
    """As for a user who lacks the right; the superuser of a container may read everything."""

    def refuse(path, *mode):
        if Path(path).name == "p3_0.png":
            raise PermissionError(13, "Permission denied")
        return open(path, *mode)

    monkeypatch.setattr(decoding, "open", refuse, raising=False)
    data = open_data(DataConfig(data=str(ten(tmp_path))))
    assert ("p3_0.png", "Permission denied") in data.skipped
    assert sum(map(len, data.splits.values())) == 9


@pytest.mark.parametrize("shape", [(256, 256), (240, 256), (256, 240), (300, 128)])
def test_shrinking_makes_large_images_fit_in_and_only_pads_small_ones(shape):
    fitted = fit(np.full(shape, 200, np.uint8), (128, 128), "shrink")
    rows, columns = np.nonzero(fitted)
    ratio = 128 / max(shape)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (round(shape[0] * ratio), round(shape[1] * ratio))
    small = picture(1, (5, 7))
    np.testing.assert_array_equal(fit(small, (8, 8), "shrink"), fit(small, (8, 8), "pad"))


@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (16, 24), (33, 47)])
def test_covering_leaves_no_border_and_takes_the_middle(shape):
    pixels = np.full(shape, 200, np.uint8)
    long = 0 if shape[0] > shape[1] else 1
    pixels.swapaxes(0, long)[:2] = 0  # the ends of the longer side are cut off
    fitted = fit(pixels, (32, 32), "cover")
    assert fitted.shape == (32, 32)
    assert fitted.min() >= 190


@pytest.mark.usefixtures("no_budget")
def test_slices_of_256_pixels_go_through_the_preset_for_128(tmp_path, call):
    for p in range(6):
        for k in range(2):
            save(tmp_path / "data" / f"case_{p:03d}_slice_{k}.nii.png", picture(p + k, (256, 240)))
    flags = ("--run", tmp_path / "run", "--data", tmp_path / "data", "--preset", "brain128", "--dry-run")
    told = call(train_vqvae.main, *flags)
    assert told.code == 0, told.err
    assert "images     128 x 128" in told.out
    assert "12 of 256 x 240, brought to size by shrink" in told.out


def test_padding_what_is_too_large_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"8x8 against 4x16.*another --fit"):
        open_data(DataConfig(data=str(ten(tmp_path)), size="4x16", fit="pad"))
