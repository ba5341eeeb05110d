"""Labels that are numbers: read, learned, asked for, swept and looked for in samples."""

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2 import PriorConfig
from vqvae2.conditioning import NumberEmbedding
from vqvae2.covariates import nearest, number_values
from vqvae2.data import DataConfig, open_data
from vqvae2.data.labels import encode
from vqvae2.errors import UserError
from vqvae2.labels import draw_labels, label_rows
from vqvae2.report import number_figures
from vqvae2.stages.sweep import places_to_sweep

AGES = number_values(20, 80)
CONFIG = PriorConfig(attributes=(("sex", ("F", "M")), ("age", AGES)), numbers=("age",))


def test_the_nearest_value_is_half_a_step_away_at_most():
    numbers = np.random.default_rng(0).uniform(20, 80, 1000)
    values = np.array([float(AGES[place]) for place in nearest(AGES, numbers)])
    assert len(AGES) == 601
    assert np.abs(values - numbers).max() <= 0.05 + 1e-9
    assert nearest(AGES, [-5, 20, 80, 1e9]).tolist() == [0, 0, 600, 600]


@pytest.mark.parametrize(
    ("low", "high", "first", "last", "count"),
    [
        (20.17, 79.4, "20.1", "79.4", 594),
        (0, 1, "0", "1", 1001),
        (-3, 5, "-3", "5", 801),
        (1e6, 1e6 + 0.5, "1000000", "1000000.5", 1001),
        (150_000, 2_300_000, "150000", "2300000", 431),
        (0.0001, 0.0002, "0.0001", "0.0002", 1001),
    ],
)
def test_values_are_round_and_enclose_the_range(low, high, first, last, count):
    values = number_values(low, high)
    assert (values[0], values[-1], len(values)) == (first, last, count)
    steps = np.diff(np.array(values, float))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)


def test_close_numbers_have_like_features_and_a_missing_one_its_own():
    torch.manual_seed(0)
    table = NumberEmbedding(len(AGES), 32)
    rows = table(torch.arange(len(AGES) + 1)).detach()
    steps = (rows[1:-1] - rows[:-2]).norm(dim=1)
    assert float(steps.max()) < 0.1 * float((rows[0] - rows[-2]).norm())
    with torch.no_grad():
        table.weight[-1] += 1
    changed = table(torch.arange(len(AGES) + 1)).detach()
    assert torch.equal(changed[:-1], rows[:-1])
    assert not torch.equal(changed[-1], rows[-1])


def test_a_column_of_numbers():
    training = np.array([True] * 4 + [False] * 2)
    found = encode({"age": ["20", "50", "", "80", "65,5", "95"]}, training, numbers=("age",))
    assert found.numbers == ("age",)
    assert found.attributes == {"age": AGES}
    assert found.values[:, 0].tolist() == [0, 300, -1, 600, 455, 600]
    assert found.notes == [
        "age: 1 images lie outside 20 to 80, the range of the training images, such as 95, and take its ends"
    ]
    # Read again, the values stay those of the training images.
    again = encode({"age": ["30", "50"]}, np.ones(2, bool), found.attributes, numbers=found.numbers)
    assert again.attributes == found.attributes
    assert again.values[:, 0].tolist() == nearest(AGES, [30, 50]).tolist()


@pytest.mark.parametrize(
    ("cells", "line"),
    [(["20", "old"], "holds texts"), (["50", "50"], "all training images have 50"), (["", ""], "no image has a label")],
)
def test_a_column_that_is_no_number(cells, line):
    with pytest.raises(UserError, match=line):
        encode({"age": cells}, np.ones(2, bool), numbers=("age",))


def test_numbers_are_named_with_commas_or_spaces_and_not_binned_besides(tmp_path):
    for name in ("a", "b", "c", "d"):
        for i in range(3):
            Image.new("L", (16, 16), 40 * i + ord(name)).save(tmp_path / f"{name}_{i}.png")
    (tmp_path / "t.csv").write_text("subject,age,score\na,20,1\nb,30,2\nc,40,3\nd,50,4\n")
    flags = {"data": str(tmp_path), "labels": f"{tmp_path / 't.csv'}:age,score"}
    for numbers in (("age,score",), ("age", "score")):
        assert open_data(DataConfig(**flags, numbers=numbers)).numbers == ("age", "score")
    with pytest.raises(UserError, match="age cannot be both binned and a number"):
        open_data(DataConfig(**flags, numbers=("age",), bins=("age=30",)))
    with pytest.raises(UserError, match="there are no labels size"):
        open_data(DataConfig(**flags, numbers=("size",)))


@pytest.mark.parametrize("flag", ["labels", "bins", "numbers", "subject_pattern", "exclude"])
def test_flags_of_folders_are_not_ignored_where_there_is_none(flag):
    value = "ages.csv:age" if flag in ("labels", "subject_pattern") else ("age=40",)
    with pytest.raises(UserError, match=f"--{flag.replace('_', '-')} is for a folder of images, not for phantom"):
        open_data(DataConfig(data="phantom", **{flag: value}))


def test_a_number_is_asked_for_whether_or_not_an_image_has_it():
    rows = label_rows(CONFIG.attributes, {"age": "63.5", "sex": "M"}, 2, CONFIG.numbers)
    assert rows.tolist() == [[1, int(nearest(AGES, 63.5))]] * 2
    assert label_rows(CONFIG.attributes, {"age": "63,5"}, 1, CONFIG.numbers).tolist() == [[-1, 435]]
    for text, line in (("150", "is outside"), ("old", "is not a number"), ("nan", "is not a number")):
        with pytest.raises(UserError, match=line):
            label_rows(CONFIG.attributes, {"age": text}, 1, CONFIG.numbers)


def test_what_was_not_asked_for_follows_the_images_of_nearest_number():
    """Women are young, men are old, all have even ages; the number itself is the one that was asked for."""
    ages = 2 * torch.arange(200)
    known = torch.stack([(ages > 200).long(), ages], 1)
    assert draw_labels(torch.tensor([[-1, 301]]).expand(50, 2), known, 0, numbers=[1]).tolist() == [[1, 301]] * 50
    near = draw_labels(torch.tensor([[-1, 201]]).expand(200, 2), known, 0, numbers=[1])
    assert set(near[:, 0].tolist()) == {0, 1}
    drawn = draw_labels(torch.tensor([[0, -1]]).expand(50, 2), known, seed=0, numbers=[1])
    assert (drawn[:, 0] == 0).all()
    assert (drawn[:, 1] <= 200).all()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("age=20:80:20", ["20", "40", "60", "80"]),
        ("age=25:45:10", ["25", "35", "45"]),
        ("age", ["20", "28.6", "37.1", "45.7", "54.3", "62.9", "71.4", "80"]),
        ("sex", ["F", "M"]),
    ],
)
def test_what_is_swept(text, values):
    name, places = places_to_sweep(text, CONFIG)
    assert [dict(CONFIG.attributes)[name][place] for place in places] == values


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("size", "there is no label size"),
        ("sex=F:M:1", "sex has classes, and no range"),
        ("age=10:30:5", "such as age=20:80:10"),
        ("age=60:40:5", "is no range"),
        ("age=40:60:0", "is no range"),
        ("age=40:60:0.01", "in steps of 0.1 or more"),
        ("age=40:60", "is no range"),
    ],
)
def test_what_cannot_be_swept(text, line):
    with pytest.raises(UserError, match=line):
        places_to_sweep(text, CONFIG)


@pytest.mark.parametrize(("followed", "low", "high"), [(1.0, 0.9, 1.1), (0.5, 0.4, 0.6), (0.0, -0.15, 0.15)])
def test_how_far_samples_follow_their_number(followed, low, high):
    """Features that hold the number in one of eight directions; samples that show it, half of it, or nothing."""
    generator = np.random.default_rng(0)
    direction = generator.normal(size=8)

    def images(numbers):
        return torch.from_numpy(numbers[:, None] * direction / 20 + generator.normal(size=(len(numbers), 8)))

    known, given, asked = (generator.uniform(20, 80, count) for count in (600, 300, 300))
    known[:5] = np.nan
    people = [str(i // 6) for i in range(600)]
    shown = 50 + followed * (asked - 50)
    found = number_figures(
        (images(np.nan_to_num(known, nan=50)), known, people),
        (images(given), given, people[:300]),
        images(given),
        (images(shown), asked),
    )
    assert low < found["ratio"] < high
    assert abs(found["shuffled"]["slope"]) < 0.15
    signal = float(direction @ direction) * 300 / 400  # variance along the direction, beside noise of variance 1
    assert found["real"]["slope"] == pytest.approx(signal / (1 + signal), abs=0.06)
    bottom, top = found["real"]["interval"]
    assert bottom < found["real"]["slope"] < top
    assert found["real"]["count"] == 300


def test_one_number_for_all_samples_has_no_slope():
    features, numbers = torch.randn(20, 3), np.arange(20.0)
    people = [str(i) for i in range(20)]
    assert (
        number_figures((features, numbers, people), (features, numbers, people), features, (features, np.full(20, 5.0)))
        is None
    )
