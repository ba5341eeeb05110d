"""The numbers of the report against independent forms, and its figures."""

import copy
import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from vqvae2 import distributed, report
from vqvae2.checkpoint import Pretrained
from vqvae2.data import DataConfig, ImageSet, from_unit, open_data, to_unit
from vqvae2.errors import UserError
from vqvae2.metrics import Bands, foreground, foreground_scores, gaussian_blur, positionwise_unigram_nll
from vqvae2.prior import Prior
from vqvae2.report import figures
from vqvae2.report.album import Album, read_stats
from vqvae2.report.samples import nearest_training
from vqvae2.vqvae import VQVAE, VQVAEConfig

LAYOUT = figures._LAYOUT  # as users get it, before conftest.py takes it away


class Lossless(Pretrained):
    """Stands for a VQ-VAE that loses nothing: its one level's codes are the grey values themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def encode(self, images: Tensor) -> list[Tensor]:
        return [((images[:, 0] + 1) * 127.5).round().long()]

    def decode(self, codes: list[Tensor]) -> Tensor:
        return codes[0][:, None].float() / 127.5 - 1


@pytest.fixture(scope="module")
def phantom() -> dict[str, ImageSet]:
    return open_data(DataConfig(phantom_images=80, size="32x32"), ["train", "val", "test"]).splits


@pytest.fixture
def images() -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 1, 16, 16)).astype(np.uint8)
    names = [f"{i}.png" for i in range(7)]
    return ImageSet(pixels, names, ["a", "a", "b", "b", "c", "c", "c"], np.zeros((7, 0), np.int64), (0, 255))


def sample_set(codes: Tensor, labels: list[int] | None = None) -> report.SampleSet:
    count = len(codes)
    rows = np.array(labels or [-1] * count).reshape(count, 1)
    return report.SampleSet(Path("samples"), [codes], np.zeros((count, 1)), rows, {}, Lossless())  # type: ignore[arg-type]


def test_spread_is_numpys_and_counts_what_is_infinite():
    values = np.array([3.0, 1.0, np.inf, 2.0, 5.0])
    found = report.spread(values)
    assert found["infinite"] == 1
    finite = values[np.isfinite(values)]
    assert (found["mean"], found["std"], found["min"]) == (finite.mean(), finite.std(), 1.0)
    assert (found["p5"], found["median"], found["p95"]) == tuple(np.percentile(finite, [5, 50, 95]))
    assert math.isnan(report.spread(np.array([np.inf]))["mean"])
    assert report.spread(np.array([3.0, np.nan, 1.0])) == report.spread(np.array([3.0, 1.0]))


def test_the_interval_of_a_mean_counts_people_and_not_images():
    draw = np.random.default_rng(0)
    subjects = [f"p{i}" for i in range(50) for _ in range(8)]
    inside = 0
    for _ in range(200):
        people = draw.normal(3.0, 1.0, 50)
        low, high = report.subject_interval(np.repeat(people, 8), subjects)
        inside += low <= 3.0 <= high
        formula = 2 * 1.96 * people.std() / math.sqrt(50)
        assert 0.85 < (high - low) / formula < 1.1
    assert 180 <= inside <= 198
    values = np.array([1.0, 2.0, np.nan, 3.0, np.inf, 5.0, 6.0, 7.0])
    without = report.subject_interval(values[[0, 1, 3, 5, 6, 7]], list("aabdef"))
    assert without is not None
    assert report.subject_interval(values, list("aabbcdef")) == without
    assert report.subject_interval(values, list("aabbccdd")) is None
    assert report.spread(values[5:], list("def"))["interval"] is None


def test_a_scan_scores_every_image_as_scikit_image_does_and_in_batches_alike(tiny_vqvae, images):
    naive = report.mean_image(images)
    assert naive.numpy() == pytest.approx(to_unit(images.images, (0, 255)).mean(0).numpy(), abs=1e-6)
    made = []
    found = report.scan(
        tiny_vqvae, images, naive=naive, batch_size=3, each=lambda rows, y: made.append((list(rows), y))
    )
    x = images.at(range(7))
    codes = tiny_vqvae.encode(x)
    assert all(torch.equal(a, b) for a, b in zip(found.codes, codes, strict=True))
    assert [row for rows, _ in made for row in rows] == list(range(7))
    decoded = {
        "all": tiny_vqvae.decode(codes),
        "upper.top": tiny_vqvae.decode(codes[:1]),
        "mean_image": naive.expand_as(x),
    }
    assert torch.cat([y for _, y in made]) == pytest.approx(decoded["all"], abs=1e-6)
    assert found.scores.keys() == decoded.keys()
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 2.0}
    for name, y in decoded.items():
        pairs = [(a[0].double().numpy(), b[0].double().numpy()) for a, b in zip(x, y, strict=True)]
        assert found.scores[name]["ssim"] == pytest.approx(
            [structural_similarity(a, b, **options) for a, b in pairs], abs=1e-5
        )
        mse = np.array([((a - b) ** 2).mean() for a, b in pairs])
        assert found.scores[name]["mse"] == pytest.approx(mse, rel=1e-4)
        assert found.scores[name]["psnr_db"] == pytest.approx(10 * np.log10(4 / mse), rel=1e-4)
    summary = report.reconstruction_figures(found, images, worst=2)
    assert (summary["count"], summary["subjects"]) == (7, 3)
    order = np.argsort(found.scores["all"]["ssim"])
    assert [case["key"] for case in summary["worst"]] == [images.keys[i] for i in order[:2]]
    levels = report.level_figures(found, tiny_vqvae)
    share = np.bincount(codes[0].flatten(), minlength=8) / codes[0].numel()
    share = share[share > 0]
    assert levels["top"]["perplexity"] == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert levels["top"]["least_perplexity"] == 4


def test_a_scan_tells_sharpness_of_every_decoding_beside_the_background_of_the_data(phantom, started):
    model = started(VQVAEConfig(height=32, width=32, num_embeddings=(16, 16), hidden_channels=8, init_vectors=64))
    train, val = phantom["train"], phantom["val"]
    naive, background = report.mean_image(train), report.background_of(train)
    assert background == pytest.approx(-1, abs=0.02)
    found = report.scan(model, val, naive=naive, background=background, batch_size=3)
    x = val.at(range(len(val)))
    mask, codes = foreground(x, background), model.encode(x)
    assert found.foreground_share == pytest.approx(float(mask.float().mean()))
    decoded = {"all": model.decode(codes), "upper.top": model.decode(codes[:1]), "mean_image": naive.expand_as(x)}
    for name, y in decoded.items():
        scores, bands = foreground_scores(y, x, mask), Bands((32, 32))
        bands.update(y, x)
        for figure, values in scores.items():
            assert found.scores[name][figure] == pytest.approx(values.numpy(), abs=1e-4)
        for figure, value in (bands.figures() | bands.pooled()).items():
            assert found.sharpness[name][figure] == pytest.approx(value, abs=1e-4)
    # Their intervals by resampling people one by one, with all that each of them has.
    people = sorted(set(val.subjects))
    rows = {one: [i for i, subject in enumerate(val.subjects) if subject == one] for one in people}
    draw, powers = np.random.default_rng(1), []
    for _ in range(300):
        some = [row for one in draw.choice(people, len(people)) for row in rows[one]]
        bands = Bands((32, 32))
        bands.update(decoded["all"][some], x[some])
        powers.append(bands.figures()["power_2_4"])
    assert len(people) >= 5
    low, high = found.intervals["all"]["power_2_4"]
    assert low < found.sharpness["all"]["power_2_4"] < high
    edges = np.percentile(powers, [2.5, 97.5])
    assert [low, high] == pytest.approx(list(edges), abs=0.25 * (edges[1] - edges[0]))
    few = [row for one in people[:4] for row in rows[one]]
    names = [val.subjects[row] for row in few]
    some = ImageSet(val.images[few], names, names, val.labels[few], val.value_range)
    assert report.scan(model, some).intervals["all"] == {}
    summary = report.reconstruction_figures(found, val)
    assert summary["sharpness_intervals"] == found.intervals["all"]
    assert summary["upper"]["top"]["sharpness"] == found.sharpness["upper.top"]
    assert summary["mean_image"]["ssim_foreground"]["mean"] == found.scores["mean_image"]["ssim_foreground"].mean()
    # The blur whose score the mean image has gives that score to the originals.
    sigma = found.sharpness["mean_image"]["blur_px"]
    blurred = foreground_scores(gaussian_blur(x, sigma), x, mask)["ssim_foreground"].mean()
    assert float(blurred) == pytest.approx(found.scores["mean_image"]["ssim_foreground"].mean(), abs=0.02)


def test_a_level_of_one_code_counts_as_collapsed(tiny_vqvae, images):
    tiny_vqvae.quantizers[1].embedding[1:] = 1e6
    levels = report.level_figures(report.scan(tiny_vqvae, images), tiny_vqvae)
    assert levels["bottom"]["perplexity"] == 1
    assert levels["bottom"]["collapsed"]


def test_a_priors_score_is_the_cross_entropy_of_a_naive_loop(tiny_prior_config):
    torch.manual_seed(0)
    prior = Prior(tiny_prior_config).eval()
    torch.nn.init.normal_(prior.output.weight)
    top, codes, labels = (
        torch.randint(8, (5, 2, 3)),
        torch.randint(12, (5, 4, 6)),
        torch.tensor([[0], [1], [-1], [1], [0]]),
    )
    found = report.score_codes(prior, [top, codes], labels, batch_size=2)
    cells, right = np.zeros((5, 4, 6)), 0
    with torch.no_grad():
        for n in range(5):
            log_p = prior(codes[n : n + 1], [top[n : n + 1]], labels[n : n + 1])[0].double().log_softmax(0)
            for i in range(4):
                for j in range(6):
                    cells[n, i, j] = -log_p[codes[n, i, j], i, j]
                    right += int(log_p[:, i, j].argmax() == codes[n, i, j])
    # fp32 sums over batches of other sizes.
    assert found.nll == pytest.approx(cells.mean((1, 2)), rel=1e-5)
    assert found.nll_map == pytest.approx(cells.mean(0), rel=1e-4)
    assert found.accuracy == right / cells.size


def test_reliance_tells_what_a_prior_draws_on(tiny_prior_config):
    """Of codes that all follow from the top and the label, none from their neighbours."""
    torch.manual_seed(0)
    prior = Prior(replace(tiny_prior_config, dropout=0.0, label_dropout=0.0))
    top, labels = torch.randint(8, (64, 2, 3)), torch.randint(2, (64, 1))
    codes = top.repeat_interleave(2, 1).repeat_interleave(2, 2) + 2 * labels[:, :, None]
    optimizer = torch.optim.Adam(prior.parameters(), 3e-3)
    for _ in range(150):
        torch.nn.functional.cross_entropy(prior(codes, [top], labels), codes).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = report.reliance(prior.eval(), [top, codes], labels, most=64)
    assert set(found) == {"own", "top", "labels"}
    assert found["top"] > 1
    assert abs(found["own"]) < found["labels"] < found["top"]
    # By hand, for the top: the same images, told the top of the image half of them further on.
    other = prior(codes, [top.roll(32, 0)], labels)
    own = prior(codes, [top], labels)
    rise = torch.nn.functional.cross_entropy(other, codes) - torch.nn.functional.cross_entropy(own, codes)
    assert found["top"] == pytest.approx(rise.item(), rel=1e-4)
    in_parts = report.reliance(prior, [top, codes], labels, batch_size=7, most=64)
    assert in_parts == pytest.approx(found, abs=1e-5)
    assert report.reliance(prior, [top[:1], codes[:1]], labels[:1]) == {}  # there is no other image


@pytest.mark.parametrize("with_mean", [False, True])
def test_a_process_without_images_joins_every_collective(tiny_vqvae, images, monkeypatch, with_mean):
    """Its empty parts have the shapes and types of the others', for which the others would wait."""

    def calls(count: int) -> list[tuple]:
        made: list[tuple] = []

        def note(name: str, first: int) -> None:
            def call(tensor: Tensor) -> Tensor:
                made.append((name, tuple(tensor.shape[first:]), tensor.dtype))
                return tensor

            monkeypatch.setattr(distributed, name, call)

        note("all_gather_rows", 1)
        note("all_reduce_sum", 0)
        monkeypatch.setattr(distributed, "own_part", lambda items: items[:count])
        report.scan(tiny_vqvae, images, naive=report.mean_image(images) if with_mean else None, background=-1.0)
        return made

    assert calls(0) == calls(7)


def test_tables_of_counts_agree_with_the_metrics_and_the_gain_with_both():
    draw = np.random.default_rng(0)
    train, codes = draw.integers(0, 6, (40, 2, 3)), draw.integers(0, 6, (9, 2, 3))
    found, position_map = report.table_figures(codes, train, 6)
    assert found["position_nll"] == pytest.approx(positionwise_unigram_nll(train, codes, 6))
    assert position_map.mean() == pytest.approx(found["position_nll"])
    assert found["position_nll_bits"] == pytest.approx(found["position_nll"] / math.log(2))
    scores = report.CodeScores(np.array([1.0, 2.0]), np.full((2, 3), 1.5), 0.5)
    own = report.prior_figures(scores, scores, found["position_nll"], ["a", "b"])
    assert own["nll_interval"] is None
    assert own["gain"] == pytest.approx(found["position_nll"] - 1.5)


def test_bits_per_dim_add_up_over_levels():
    nats = dict.fromkeys(("nll", "position_nll", "unigram_nll"), 2 * math.log(2))
    levels = {
        "top": {"shape": [2, 2], "num_embeddings": 16, **nats},
        "bottom": {"shape": [4, 4], "num_embeddings": 4, **nats},
    }
    found = report.bits_per_dim(levels, 64)
    assert found["prior"] == pytest.approx(20 * 2 / 64)
    assert found["uniform"] == pytest.approx((4 * 4 + 16 * 2) / 64)


def test_pairwise_ssim_is_the_mean_over_all_pairs():
    images = torch.rand(5, 1, 12, 14, generator=torch.Generator().manual_seed(0)) * 2 - 1
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 2.0}
    pairs = [
        structural_similarity(images[i, 0].double().numpy(), images[j, 0].double().numpy(), **options)
        for i in range(5)
        for j in range(i)
    ]
    assert report.pairwise_ssim(images, chunk=3)[0] == pytest.approx(np.mean(pairs), abs=1e-5)
    assert math.isnan(report.pairwise_ssim(images[:1])[0])


def test_the_interval_of_pairwise_ssim_is_that_of_a_bootstrap_in_loops():
    images = torch.rand(9, 1, 12, 14, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images[3:] = images[3:] * 0.1 + images[3]
    subjects = list("aabbcdefg")
    mean, (low, high) = report.pairwise_ssim(images, subjects)
    alone = {(i, j): report.pairwise_ssim(images[[i, j]])[0] for i in range(9) for j in range(9) if i != j}
    names, draw, means = sorted(set(subjects)), np.random.default_rng(1), []
    for _ in range(1000):
        drawn = [names.index(name) for name in draw.choice(names, len(names))]
        own = [(i, j, 1) for k in drawn for i, j in alone if subjects[i] == subjects[j] == names[k]]
        # Of 7 subjects two others are drawn together with 6/7 of the frequency with which each is drawn once.
        pairs = [(a, b) for a in drawn for b in drawn if a != b]
        two = [(i, j, 7 / 6) for a, b in pairs for i, j in alone if (subjects[i], subjects[j]) == (names[a], names[b])]
        weights = np.array([w for *_, w in own + two])
        means.append(np.average([alone[i, j] for i, j, _ in own + two], weights=weights))
    assert low < mean < high
    assert [low, high] == pytest.approx(np.nanpercentile(means, [2.5, 97.5]), abs=0.03)
    assert report.pairwise_ssim(images[:4], subjects[:4])[1] is None


def test_the_interval_of_pairwise_ssim_holds_its_mean_where_one_person_s_images_are_alike():
    people = torch.rand(6, 1, 12, 14, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, (low, high) = report.pairwise_ssim(people.repeat_interleave(10, 0), [f"p{i // 10}" for i in range(60)])
    assert low < mean < high


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 4095)])
def test_the_nearest_training_image_is_that_of_a_naive_loop(dtype, top):
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, top + 1, (20, 2, 5, 6)).astype(dtype)
    train = ImageSet(pixels, [str(i) for i in range(20)], ["a"] * 20, np.zeros((20, 0), np.int64), (0, top))
    queries = torch.from_numpy(draw.uniform(-1, 1, (6, 2, 5, 6))).float()
    index, distance = nearest_training(queries, train)
    queries = to_unit(from_unit(queries, (0, top)), (0, top))  # compared as they are stored
    reference = to_unit(pixels, (0, top)).double().numpy()
    naive = np.sqrt(((queries.double().numpy()[:, None] - reference[None]) ** 2).mean((2, 3, 4)))
    assert index.tolist() == naive.argmin(1).tolist()
    assert distance == pytest.approx(naive.min(1), rel=1e-5)


def test_copies_of_training_images_are_found_and_held_out_images_are_not(phantom):
    model, train = Lossless(), phantom["train"]
    real = phantom["val"].at(range(len(phantom["val"])))
    train_images = train.at(range(len(train)))
    codes = [model.encode(train_images)[0].numpy()]

    def figures_of(samples: Tensor) -> dict:
        drawn = sample_set(model.encode(samples)[0])
        near = report.neighbours(samples, real, real, train)
        return report.memorisation_figures(near, drawn, train, codes, model)  # type: ignore[arg-type]

    copied = figures_of(train_images[[3, 8, 8]])
    assert (copied["copies"], copied["identical_codes"], copied["mirrored_copies"]) == (3, 3, 0)
    assert copied["ratio_of_medians"] == pytest.approx(0, abs=1e-6)
    assert copied["closer_share"] == 1
    assert [case["key"] for case in copied["nearest"]] == [train.keys[i] for i in (3, 8, 8)]
    often = copied["subjects"]
    assert [(one["subject"], one["samples"]) for one in often] == [(train.subjects[8], 2)]
    assert often[0]["real"] <= copied["most_real"] <= len(real)
    mirrored = figures_of(train_images[[3, 8]].flip(-1))
    assert (mirrored["copies"], mirrored["mirrored_copies"], mirrored["identical_codes"]) == (0, 2, 0)
    fresh = figures_of(phantom["test"].at(range(len(phantom["test"]))))
    assert fresh["copies"] == fresh["mirrored_copies"] == fresh["identical_codes"] == 0
    assert 0.8 < fresh["ratio_of_medians"] < 1.25


def test_ventricles_of_true_slices_keep_their_difference_and_doubles_count_once(phantom):
    train = phantom["train"]
    batch = phantom["train"].__getitems__(range(20))
    samples = sample_set(Lossless().encode(batch["image"])[0], batch["label"][:, 0].tolist())
    classes = ("healthy", "atrophy")
    found = report.ventricles([samples, samples], train, classes)
    assert sum(map(len, found.samples.values())) == 20
    summary = report.ventricle_figures(found, classes)
    error = 3 * summary["ventricle_difference_ratio_se"]
    assert summary["ventricle_difference_ratio"] == pytest.approx(1, abs=error)
    assert 0 < error < 1


def test_a_sample_without_a_head_is_counted_and_left_out_of_the_mean():
    areas = report.Ventricles(
        {"healthy": np.array([0.04, np.nan, 0.06]), "atrophy": np.array([0.09])},
        {"healthy": np.array([0.05]), "atrophy": np.array([0.13])},
    )
    found = report.ventricle_figures(areas, ("healthy", "atrophy"))
    assert found["labels"]["healthy"]["nan"] == 1
    assert found["labels"]["healthy"]["mean"] == pytest.approx(0.05)
    assert found["ventricle_difference_ratio"] == pytest.approx(0.5)


def test_every_level_count_and_both_colour_kinds_can_be_drawn(tmp_path, started):
    for channels, strides in ((1, (2,)), (3, (2, 2, 2))):
        levels = len(strides)
        config = VQVAEConfig(
            channels=channels, height=16, width=24, strides=strides, num_embeddings=(8,) * levels,
            embedding_dim=(4,) * levels, hidden_channels=8, residual_channels=4, init_vectors=16,
        )  # fmt: skip
        model: VQVAE = started(config)
        pixels = np.random.default_rng(0).integers(0, 256, (2, channels, 16, 24)).astype(np.uint8)
        pair = ImageSet(pixels, ["a.png", "b.png"], ["a", "b"], np.zeros((2, 0), np.int64), (0, 255))
        found = report.scan(model, pair, naive=report.mean_image(pair))
        album = Album(tmp_path / f"{channels}")
        album.images(model, pair, found, report.level_figures(found, model))
        names = {"reconstructions", "ssim", "code_maps", "codebook_use"} | ({"levels"} if levels > 1 else set())
        assert set(album.widths) == names
        assert {path.stem for path in (tmp_path / f"{channels}").iterdir()} == names
        assert report.reconstruction_figures(found, pair)["upper"].keys() == {"top", "middle"} & set(model.levels[:-1])


def test_samples_are_shown_by_class_where_two_classes_have_two_on_both_sides(tmp_path, monkeypatch):
    album, drawn = Album(tmp_path), []
    monkeypatch.setattr(figures, "rows_of_images", lambda rows, titles: drawn.append((rows, titles)) or Figure())
    images = 10 * torch.arange(6.0)[:, None, None, None].expand(-1, 1, 8, 8)
    attributes = {"site": ("a", "b"), "age": ("young", "middle", "old")}
    labels = np.array([[0, 2], [0, 0], [-1, 2], [0, 0], [0, 1], [0, -1]])
    real = np.array([[0, 0], [1, 2], [1, 2], [1, 0], [0, 1], [0, 1]])
    album.by_class(images, labels, images, real, attributes)
    ((rows, titles),) = drawn
    blank = 1
    assert titles == {"age\nyoung": 2 * ["sample"] + 2 * ["held-out image"]}
    found = {name: row[:, 0, 0, 0].tolist() for name, row in rows.items()}
    assert found == {"age\nyoung": [10, 30, 0, 30], "age\nold": [0, 20, 10, 20]}
    both = np.array([[0, 2], [0, 0], [1, 2], [0, 0], [1, 1], [0, -1]])
    album.by_class(images, both, images, both, attributes)
    rows, titles = drawn.pop()
    assert titles == {"site\na": 4 * ["sample"] + 3 * ["held-out image"]}
    assert {name: row[:, 0, 0, 0].tolist() for name, row in rows.items()} == {
        "site\na": [0, 10, 30, 50, 0, 10, 30],
        "site\nb": [20, 40, blank, blank, 20, 40, blank],
        "age\nyoung": [10, 30, blank, blank, 10, 30, blank],
        "age\nold": [0, 20, blank, blank, 0, 20, blank],
    }
    album.by_class(images, labels[:, :1], images, real[:, :1], {"site": ("a", "b")})
    assert len(drawn) == 1


def test_dollars_in_names_of_rows_are_no_formula(tmp_path):
    images = torch.zeros(2, 1, 8, 8)
    figure = figures.rows_of_images({"income\n$_low_$": images, "income\n$0-$50k": images}, {})
    figures.save(figure, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").is_file()


def test_labels_of_panels_do_not_lie_over_each_other(monkeypatch):
    monkeypatch.setattr(figures, "_LAYOUT", LAYOUT)
    figure, axes = figures._panels(3)
    for axis in axes:
        axis.set_yticks([0, 1], ["a long label", "another long label"])
        axis.set(title="a title", xlabel="the horizontal axis", ylabel="the vertical axis")
    figure.draw_without_rendering()
    boxes = [axis.get_tightbbox() for axis in axes]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_equal_figures_are_equal_files(tmp_path):
    for name in ("a", "b"):
        figure = figures.ventricle_areas({"any": np.array([0.1, 0.2])}, {"healthy": np.array([0.1, np.nan])})
        figures.save(figure, tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_log_is_read_as_far_as_it_is_whole(tmp_path):
    (tmp_path / "stats.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "tra')
    assert read_stats(tmp_path / "stats.jsonl") == [{"step": 1, "train/loss": 2.0}]
    assert read_stats(tmp_path / "none.jsonl") == []


def test_samples_of_other_models_are_left_aside_and_damaged_ones_refused(tmp_path, tiny_vqvae):
    codes = {
        level: np.zeros((2, *shape), np.int32)
        for level, shape in zip(("top", "bottom"), tiny_vqvae.config.shapes, strict=True)
    }
    how = {"vqvae_sha256": "v", "prior_sha256": {"top": "t", "bottom": "b"}}
    how |= {"nll_nats_per_code": {"top": [1.0, 2.0], "bottom": [3.0, 4.0]}, "labels": [[0], [-1]]}
    np.savez(tmp_path / "codes.npz", **codes)
    (tmp_path / "samples.json").write_text(json.dumps(how))
    found = report.read_samples(tmp_path, [tiny_vqvae], how)
    assert found is not None
    assert len(found) == 2
    assert found.nll.tolist() == [[1.0, 3.0], [2.0, 4.0]]
    other = copy.deepcopy(how)
    other["prior_sha256"]["top"] = "x"
    assert report.read_samples(tmp_path, [tiny_vqvae], other) is None
    assert report.read_samples(tmp_path / "absent", [tiny_vqvae], how) is None
    codes["top"] += 99
    np.savez(tmp_path / "codes.npz", **codes)
    with pytest.raises(UserError, match="the samples are damaged"):
        report.read_samples(tmp_path, [tiny_vqvae], how)


def test_a_colour_means_one_thing_in_all_figures():
    roles = [figures.SAMPLES, figures.HELD_OUT, figures.SELECTION, figures.RECONSTRUCTIONS, figures.TRAINING]
    roles += [figures.NAIVE, *map(figures.level_colour, range(4))]
    assert len(set(roles)) == len(roles)

    def colours(figure):
        found = {}
        for axis in figure.axes:
            handles, labels = axis.get_legend_handles_labels()
            for handle, label in zip(handles, labels, strict=True):
                own = handle.get_edgecolor() if hasattr(handle, "get_edgecolor") else handle.get_color()
                found.setdefault(to_hex(own).upper(), set()).add(label.split(" (mean")[0])
        return found

    lines = [
        {"step": step, "train/loss": 1.0, "selection/loss": 1.0, "val/ssim": 0.5, "top/ssim_alone": 0.4}
        | {f"{level}/perplexity{part}": 3.0 for level in ("top", "bottom") for part in ("", "_foreground")}
        for step in (1, 2)
    ]
    found = colours(figures.vqvae_curves(lines, ["top", "bottom"], [2, 2], 0.1))
    assert found[figures.TRAINING] == {"train"}
    assert found[figures.SELECTION] == {"selection subjects"}
    assert found[figures.HELD_OUT] == {"val, all levels"}
    assert {"top, without constant cells", "val, top only"} <= found[figures.level_colour(0).upper()]
    priors = [{"step": step, "train/nll": 1.0, "selection/nll": 1.0, "val/nll": 1.0} for step in (1, 2)]
    found = colours(figures.prior_curves({"top": priors}))
    assert found[figures.SELECTION] == {"selection subjects"}
    assert found[figures.HELD_OUT] == {"val"}
    values = {"samples": np.arange(3.0), "held-out images": np.arange(3.0)}
    shown = figures.histograms(
        {"": values}, "x", "y", {"samples": figures.SAMPLES, "held-out images": figures.HELD_OUT}
    )
    assert colours(shown) == {figures.SAMPLES: {"samples"}, figures.HELD_OUT: {"held-out images"}}
