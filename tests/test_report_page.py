"""The words of the report against its numbers, and its page."""

import copy
import math
import re
from base64 import b64decode

import numpy as np
import pytest

from vqvae2 import report
from vqvae2.report.captions import CAPTIONS
from vqvae2.report.markup import num


def good_report() -> dict:
    """A report with nothing to complain of."""

    def spread(value: float) -> dict[str, float]:
        figures = dict.fromkeys(("mean", "std", "p5", "median", "p95", "min", "max"), value)
        return {**figures, "interval": [value - 0.01, value + 0.01]}

    def scores(ssim: float) -> dict:
        errors = {"ssim": spread(ssim), "psnr_db": spread(30 * ssim), "mse": spread(0.01)}
        inside = {"ssim_foreground": spread(0.9 * ssim), "psnr_foreground_db": spread(25 * ssim)}
        return {**errors, **inside, "sharpness": {"blur_px": 0.7, "power_2_4": 0.8, "coherence_2_4": 0.6}}

    level = {
        "num_embeddings": 64, "shape": [4, 4], "perplexity": 40.0, "perplexity_foreground": 50.0, "usage": 0.9,
        "constant_share": 0.4, "least_perplexity": 4.0, "collapsed": False, "nll": 2.0, "nll_bits": 2.9, "gain": 1.0,
        "nll_std": 0.1, "nll_interval": None,
        "position_nll": 3.0, "unigram_nll": 4.0, "train_nll": 1.9, "accuracy": 0.5, "position_accuracy": 0.3,
        "position_perplexity": 20.1,
    }  # fmt: skip
    return {
        "version": "0",
        "created": "today",
        "run": "brain",
        "data": {"height": 32, "width": 32, "channels": 1},
        "split": {
            "name": "val", "data": "slices", "images": 9, "subjects": 3, "held_out": True, "shared_subjects": 0,
            "identical_images": 0, "own": True,
        },
        "reconstruction": {
            "count": 9, "subjects": 3, "foreground_share": 0.4, **scores(0.95),
            "mean_image": scores(0.5), "upper": {"top": scores(0.8)},
            "worst": [{"key": "<b>a</b>.png", "subject": "s&1", "ssim": 0.9, "psnr_db": 20.0, "mse": 0.1}],
        },
        "levels": {"top": level | {"reliance": {"own": 0.5}}, "bottom": level | {"reliance": {"own": 0.1, "top": 0.3}}},
        "distances": {
            space: {
                name: {
                    "kid": 0.1, "standard_error": 0.01, "frechet": 1.5, "count": 64, "real_count": 64, "compared": 64,
                    "precision": 0.9, "recall": 0.8, "density": 1.1, "coverage": 0.7, "two_sample": 0.52,
                }
                for name in ("reconstructions", "samples", "training_images", "blurred_0.5", "blurred_1.0")
            }
            for space in ("encoder", "MobileNetV2")
        },
        "bits_per_dim": {"prior": 0.1, "position_unigram": 0.2, "unigram": 0.3, "uniform": 0.4},
        "recognition": {
            "attribute": "diagnosis", "classes": ["<healthy>", "atrophy"], "majority": 0.5, "score_count": 64,
            **{
                name: {
                    "accuracy": 0.9, "interval": [0.8, 0.95], "count": 64, "by_class": [0.85, 0.95],
                    "calibration": 0.02, "chance": 0.51, "over_chance": [0.3, 0.45], "probability": 0.85,
                }
                for name in ("held_out", "recognised", "score", "real_score")
            },
            "reliability": {
                "error": 0.04, "expected": 0.03, "naive": 0.01,
                "bins": [{"low": 0.8, "high": 0.9, "count": 64, "probability": 0.86, "accuracy": 0.9}],
            },
            "curve": {"encoder": [{"share": 1.0, "precision": 0.8, "recall": 0.7, "frechet": 3.0, "compared": 16}]},
        },
        "samples": {
            "folder": "samples", "count": 64, "label": {"diagnosis": "<healthy>"}, "temperature": [1.0, 1.0],
            "top_k": [0, 0], "top_p": [1.0, 1.0], "seed": 0,
            "nll": {"top": spread(2.0), "bottom": spread(2.0)},
            "diversity": {
                "compared": 9, "pairwise_ssim": 0.6, "real_pairwise_ssim": 0.55, "reconstructed_pairwise_ssim": 0.58,
            },
            "memorisation": {
                "count": 64, "real_count": 300, "copied": 0, "copies": 0, "mirrored_copies": 0, "identical_codes": 0,
                "distance_median": 0.2, "real_distance_median": 0.2, "reconstructed_distance_median": 0.2,
                "real_distance_p1": 0.1, "reconstructed_distance_p1": 0.1, "ratio_of_medians": 1.0,
                "ratio_of_medians_reconstructed": 1.0, "closer_share": 0.0, "closer_share_reconstructed": 0.0,
                "correlation_median": 0.9, "real_correlation_median": 0.9, "correlation_p99": 0.95,
                "correlated_share": 0.0,
            },
        },
        "phantom": {
            "labels": {
                name: {"samples": 32, "nan": 0, "mean": 0.1, "std": 0.0, "true_mean": 0.1, "true_std": 0.0}
                for name in ("healthy", "atrophy")
            },
            "ventricle_difference": 0.07, "true_difference": 0.07, "ventricle_difference_ratio": 1.0,
            "ventricle_difference_ratio_se": 0.1,
        },
        "commands": ["python evaluate.py --run 'a & b'"],
        "hashes": {"vqvae_sha256": "0" * 64, "prior_sha256": {"top": "1" * 64}},
        "missing": [],
        "verdict": [{"question": "Does it <reconstruct>?", "band": "weak", "reason": "So & so."}],
        "summary": [],
        "warnings": [],
    }  # fmt: skip


def plain_report() -> dict:
    """The same with samples of any class."""
    found = good_report()
    found["samples"]["label"] = {}
    return found


DEFECTS = {
    "levels.top.collapsed": (True, "level top has collapsed"),
    "levels.bottom.usage": (0.1, "uses 10% of its codebook"),
    "levels.bottom.gain": (-0.1, "no better than a table of counts"),
    "levels.bottom.reliance": ({"own": 0.001, "top": 0.4}, "makes no use of its own earlier codes"),
    "levels.bottom.train_nll": (0.9, "level bottom overfits"),
    "reconstruction.ssim.mean": (0.4, "no better than the mean training image"),
    "reconstruction.upper.top.ssim.mean": (0.4, "top only"),
    "split.held_out": (False, "not held-out figures"),
    "split.shared_subjects": (2, "are also training subjects"),
    "split.identical_images": (1, "exact copies of training images"),
    "samples.nll.top.mean": (1.0, "it is overconfident"),
    "samples.diversity.pairwise_ssim": (0.9, "lack diversity"),
    "samples.memorisation.copies": (1, "1 of 64 samples is as close to a training image"),
    "samples.memorisation.mirrored_copies": (2, "mirrored training image"),
    "samples.memorisation.identical_codes": (1, "exactly the codes of a training image"),
    "samples.memorisation.closer_share_reconstructed": (0.5, "closer to a training image than 99%"),
    "samples.memorisation.correlated_share": (0.2, "shifted or mirrored, more with a training image"),
    "phantom.ventricle_difference_ratio": (0.2, "Labels have too little effect"),
    "recognition.recognised.over_chance": ([-0.1, 0.2], "cannot be told from chance: 0.90 recognised"),
    "phantom.labels.atrophy.nan": (3, "no head could be found"),
}


@pytest.mark.parametrize(("name", "value"), [("top_k", 1), ("top_p", 0.9), ("min_p", 0.1), ("temperature", 0.8)])
def test_samples_that_were_drawn_from_a_part_of_the_codes_are_not_called_overconfident(name, value):
    found = plain_report()
    found["samples"]["nll"]["top"]["mean"] = 1.0
    assert any("overconfident" in line for line in report.warnings(found))
    found["samples"][name] = [value, value]
    assert not any("overconfident" in line for line in report.warnings(found))


def test_a_good_report_has_no_warning_and_its_summary_tells_each_part():
    found = good_report()
    assert report.warnings(found) == []
    text = " ".join(report.summary(found))
    for word in (
        "0.950",
        "SSIM 0.855",
        "blur of 0.70",
        "samples 0.100",
        "top 50 of 64",
        "1.00 below",
        "Diversity",
        "none of 64",
        "100%",
        "Samples follow diagnosis: 0.90 recognised, 0.51 by chance (interval of the difference 0.30 to 0.45)",
    ):
        assert word in text


@pytest.mark.parametrize("place", DEFECTS)
def test_each_defect_is_warned_of_and_no_other(place):
    value, told = DEFECTS[place]
    found = good_report()
    *path, name = place.split(".")
    part = found
    for step in path:
        part = part[step]
    part[name] = value
    warned = report.warnings(found)
    assert sum(told in line for line in warned) == 1
    # Reconstructions as bad as the mean image are so from the upper levels alone, or not: nothing else follows.
    assert len(warned) == 1


def test_a_prior_that_the_samples_do_not_draw_from_is_not_to_be_trained_for_them():
    found = good_report()
    found["levels"]["bottom"]["reliance"]["own"] = 0.001
    for levels, told in (["top", "bottom"], "will not be coherent: train it longer."), (["top"], "do not draw it."):
        found["samples"]["levels"] = levels
        (warned,) = report.warnings(found)
        assert warned.endswith(told)


def test_a_good_report_is_good_in_all_three_respects():
    bands = {line["question"]: line["band"] for line in report.verdict(plain_report())}
    assert bands == {
        "Does it reconstruct?": "good",
        "Do samples look like held-out images?": "good",
        "Are samples new?": "good",
    }


VERDICTS = [
    ("reconstruction.ssim.mean", 0.4, 0, "fail", "no better than one picture for all"),
    ("reconstruction.sharpness.blur_px", 1.2, 0, "weak", "blur of 1.20 pixels"),
    ("reconstruction.sharpness.blur_px", 1.8, 0, "fail", "visibly soft"),
    ("levels.bottom.collapsed", True, 0, "fail", "level bottom has collapsed"),
    ("distances.MobileNetV2.samples.kid", 0.31, 1, "weak", "most is lost by the priors"),
    ("distances.MobileNetV2.samples.kid", 0.9, 1, "fail", "KID 0.900 (standard error 0.010)"),
    ("distances.MobileNetV2.samples.coverage", 0.3, 1, "weak", "coverage 0.30 (training images 0.70)"),
    ("distances.MobileNetV2.samples.two_sample", 0.94, 1, "fail", "94% of them and of real ones"),
    ("samples.diversity.pairwise_ssim", 0.75, 1, "fail", "too alike"),
    ("samples.diversity.pairwise_ssim", 0.3, 1, "fail", "too unlike"),
    ("samples.label", {"sex": "F"}, 1, "not measured", "chosen class"),
    ("distances.MobileNetV2.samples.compared", 20, 1, "good", "need 30 images of each set, and were given 20"),
    ("samples.memorisation.copied", 2, 2, "fail", "2 of 64 samples are a copy"),
    ("samples.memorisation.copied", 1, 2, "fail", "1 of 64 samples is a copy"),
    ("samples.memorisation.closer_share_reconstructed", 0.5, 2, "weak", "50% by distance"),
    ("samples.memorisation.correlated_share", 0.2, 2, "weak", "20% by correlation over shifts"),
]


@pytest.mark.parametrize(("place", "value", "question", "band", "told"), VERDICTS)
def test_each_planted_failure_moves_its_own_band_and_says_why(place, value, question, band, told):
    found = plain_report()
    sets = found["distances"]["MobileNetV2"]
    sets["blurred_0.5"]["kid"], sets["blurred_1.0"]["kid"], sets["reconstructions"]["kid"] = 0.22, 0.8, 0.1
    *path, name = place.split(".")
    # A set's name has a dot in it, but none of those planted.
    part = found
    for step in path:
        part = part[step]
    part[name] = value
    lines = report.verdict(found)
    assert lines[question]["band"] == band
    assert told in lines[question]["reason"]
    assert all(line["band"] == "good" for i, line in enumerate(lines) if i != question)


@pytest.mark.parametrize(
    ("kid", "told"), [(0.1, "most is lost by the priors"), (0.3, "most is lost by the detail decoder")]
)
def test_what_a_detail_decoder_loses_is_not_blamed_on_the_priors(kid, told):
    found = plain_report()
    sets = found["distances"]["MobileNetV2"]
    sets["blurred_0.5"]["kid"], sets["blurred_1.0"]["kid"] = 0.22, 0.8
    sets["samples"]["kid"], sets["painted"] = 0.31, {"kid": kid}
    reason = report.verdict(found)[1]["reason"]
    assert f"Painted from their own codes, held-out images have {kid:.3f}: {told}" in reason


def test_a_band_is_of_the_figure_itself_and_few_samples_are_said_to_be_few():
    found = plain_report()
    sets = found["distances"]["MobileNetV2"]
    sets["blurred_0.5"]["kid"], sets["blurred_1.0"]["kid"] = 0.22, 0.8
    sets["samples"] |= {"kid": 0.4, "standard_error": 0.1}
    assert report.verdict(found)[1]["band"] == "weak", "two standard errors do not make it good"
    sets["samples"]["kid"] = 0.2
    looks = report.verdict(found)[1]
    assert looks["band"] == "good"
    assert "0.400 (two standard errors more), which is weak" in looks["reason"]
    sets["samples"]["standard_error"] = 0.001
    assert "standard errors more" not in report.verdict(found)[1]["reason"]


def test_few_images_and_faint_ones_are_judged_without_what_they_lack():
    found = plain_report()
    sets = found["distances"]["MobileNetV2"]
    sets["samples"] |= {"kid": 0.09, "standard_error": float("nan"), "compared": 5, "coverage": 0.0}
    looks = report.verdict(found)[1]
    assert looks["band"] == "good"
    assert "nan" not in looks["reason"]
    sets["samples"]["standard_error"] = None  # as read from report.json
    assert report.verdict(found)[1] == looks
    del found["reconstruction"]["sharpness"]["blur_px"]
    assert report.verdict(found)[0]["band"] == "not measured"
    found["samples"]["memorisation"] |= {"real_count": 4, "closer_share_reconstructed": 0.2}
    assert report.verdict(found)[2]["band"] == "good", "one in five lies nearer than four others by chance"


def test_without_pretrained_weights_the_verdict_uses_the_models_own_features():
    found = plain_report()
    del found["distances"]["MobileNetV2"]
    found["distances"]["encoder"]["samples"]["kid"] = 0.9
    line = report.verdict(found)[1]
    assert line["band"] == "fail"
    assert "the VQ-VAE's own features" in line["reason"]


def test_features_that_the_decoder_was_trained_by_are_named_and_come_after_others(tmp_path):
    found = plain_report()
    found["decoder_trained_by"] = ["MobileNetV2"]
    assert "the decoder was trained by these features, which flatter it" in report.verdict(found)[1]["reason"]
    report.write_page(tmp_path / "index.html", {**good_report(), "decoder_trained_by": ["MobileNetV2"]}, {})
    text = (tmp_path / "index.html").read_text()
    assert text.count("so they flatter it") == 1
    found["distances"]["resnet18"] = found["distances"]["MobileNetV2"]
    assert "in resnet18's features" in (told := report.verdict(found)[1]["reason"])
    assert "flatter" not in told


def test_a_report_of_a_vqvae_alone_is_told_and_drawn_too(tmp_path):
    found = good_report()
    for part in ("samples", "phantom", "bits_per_dim", "distances"):
        del found[part]
    for level in found["levels"].values():
        for name in ("nll", "gain", "train_nll", "position_nll", "position_perplexity"):
            del level[name]
    del found["reconstruction"]["mean_image"]
    found["missing"] = ["priors: run <this>"]
    found["summary"] = report.summary(found)
    assert report.warnings(found) == []
    found["verdict"] = report.verdict(found)
    assert [line["band"] for line in found["verdict"]] == ["good", "not measured", "not measured"]
    report.write_page(tmp_path / "index.html", found, {})
    text = (tmp_path / "index.html").read_text()
    assert "priors: run &lt;this&gt;" in text
    assert 'id="samples"' not in text


def test_the_page_needs_nothing_from_elsewhere_and_escapes_what_users_name(tmp_path):
    found = good_report()
    found["summary"], found["warnings"] = report.summary(found), ["a < b"]
    (tmp_path / "figures").mkdir()
    for name in CAPTIONS:
        (tmp_path / "figures" / f"{name}.png").write_bytes(name.encode())
    report.write_page(tmp_path / "index.html", found, dict.fromkeys(CAPTIONS, 10.0))
    text = (tmp_path / "index.html").read_text()
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert {b64decode(source).decode() for source in sources} == set(CAPTIONS)
    assert not re.search(r"https?:|//|@import|url\(|<script|<link", re.sub(r'src="data:[^"]+"', "", text))
    assert re.findall(r'href="([^"#]+)"', text) == [], "a page that is mailed has nothing beside it"
    assert text.count("<table>") == len(re.findall("<caption>[^<]{10,}</caption>", text)) > 8
    assert all(len(alt) > 20 for alt in re.findall('<img[^>]* alt="([^"]*)"', text))
    assert "Does it &lt;reconstruct&gt;? <em>weak</em>" in text
    assert "0.950 (0.940 to 0.960)" in text
    assert "<b>a</b>" not in text
    assert "&lt;b&gt;a&lt;/b&gt;.png" in text
    assert "&lt;healthy&gt;" in text
    assert "a &lt; b" in text
    for anchor in re.findall(r'href="#([^"]+)"', text):
        assert f'id="{anchor}"' in text


def test_two_runs_stand_side_by_side_and_what_differs_between_them_is_said(tmp_path):
    here, there = good_report(), good_report()
    there["run"] = "<other>"
    there["reconstruction"]["ssim"]["mean"] = 0.97
    there["distances"]["MobileNetV2"]["samples"]["kid"] = 0.3
    found = report.comparison(here, there)
    rows = {row["name"]: row for row in found["rows"]}
    error = 0.02 * 2**0.5 / (2 * 1.96)  # of two means whose 95% intervals are 0.02 wide
    assert rows["SSIM"] == {
        "name": "SSIM", "here": 0.95, "there": 0.97, "error": pytest.approx(error), "better": "there",
    }  # fmt: skip
    there["reconstruction"]["ssim"]["mean"] = 0.96  # within two standard errors
    assert {row["name"]: row["better"] for row in report.comparison(here, there)["rows"]}["SSIM"] == ""
    paired = report.comparison(here, there, {"SSIM": 0.002})["rows"][0]
    assert (paired["name"], paired["error"], paired["better"]) == ("SSIM", 0.002, "there")
    assert rows["KID of samples, MobileNetV2"]["better"] == "here"
    near = copy.deepcopy(there)
    near["reconstruction"]["ssim"]["mean"] = 0.95 * (1 + 1e-12)
    assert report.comparison(here, near)["rows"][0]["better"] == ""
    assert rows["top: gain over the position-wise unigram (nats)"]["better"] == ""
    assert found["doubts"] == []
    kid = here["distances"]["MobileNetV2"]["samples"]["kid"]
    there["distances"]["MobileNetV2"]["samples"] |= {"kid": kid + 0.02, "standard_error": 0.01}  # here 0.01, too
    again = {row["name"]: row for row in report.comparison(here, there)["rows"]}
    assert again["KID of samples, MobileNetV2"]["error"] == pytest.approx(0.01 * 2**0.5)
    assert again["KID of samples, MobileNetV2"]["better"] == ""
    there["samples"]["temperature"] = [0.9, 0.9]
    assert "another temperature" in "".join(report.comparison(here, there)["doubts"])
    there["samples"]["temperature"] = here["samples"]["temperature"]
    there["split"]["images"], there["samples"]["count"], there["data"]["height"] = 10, 128, 64
    del there["levels"]["bottom"]
    found = report.comparison(here, there)
    assert [doubt.split(":")[0] for doubt in found["doubts"]] == [
        "other images were scored", "images differ in size", "64 samples here, 128 there",
    ]  # fmt: skip
    assert not any(row["name"].startswith("bottom") for row in found["rows"])
    here |= {"comparison": found, "summary": [], "warnings": []}
    report.write_page(tmp_path / "index.html", here, {})
    page = (tmp_path / "index.html").read_text()
    assert "&lt;other&gt;" in page
    assert "other images were scored" in page


def test_differences_of_the_same_images_are_known_better_than_means():
    generator = np.random.default_rng(0)
    people = [f"s{i // 4}" for i in range(80)]
    hard = np.repeat(generator.normal(0.9, 0.05, 20), 4)
    ahead = np.repeat(generator.normal(0.01, 0.002, 20), 4)

    def scores(values):
        rows = zip(people, values, strict=True)
        return [{"file": str(i), "subject": who, "ssim": str(value)} for i, (who, value) in enumerate(rows)]

    found = report.paired_errors(scores(hard + ahead), list(reversed(scores(hard))))
    # Four images of a person say what one says; the bootstrap's deviation is that of a population.
    assert found == {"SSIM": pytest.approx(ahead[::4].std() / 20**0.5, rel=0.05)}
    assert report.paired_errors(scores(hard), scores(hard)[1:]) == {}
    few = scores(hard)[:16]
    assert report.paired_errors(few, few) == {}, "of four people an interval would promise too much"


def test_where_no_error_is_known_no_run_is_called_better(tmp_path):
    here, there = good_report(), good_report()
    there["reconstruction"]["sharpness"]["blur_px"] = 0.1
    row = next(row for row in report.comparison(here, there)["rows"] if row["name"].startswith("blur"))
    assert (row["error"], row["better"]) == (None, "")


def test_bits_are_as_uncertain_as_their_levels_together():
    here, there = good_report(), good_report()
    there["bits_per_dim"]["prior"] = 0.09
    for found in (here, there):
        for level in found["levels"].values():
            level["nll_interval"] = [1.9, 2.1]
    row = next(row for row in report.comparison(here, there)["rows"] if row["name"].startswith("bits"))
    each = 2 * (0.2 / 3.92) * 16 / (32 * 32) / math.log(2)
    assert row["error"] == pytest.approx(each * 2**0.5)
    assert row["better"] == "there"


def test_two_runs_are_compared_in_features_that_both_have(tmp_path):
    """One run's decoder was trained by MobileNetV2, so that its own figures prefer the user's network."""
    here, there = good_report(), good_report()
    here["decoder_trained_by"] = ["MobileNetV2"]
    here["distances"] = {"mine:features": here["distances"]["MobileNetV2"], **here["distances"]}
    names = {row["name"] for row in report.comparison(here, there)["rows"]}
    assert {"KID of samples, MobileNetV2", "coverage of samples, MobileNetV2"} <= names
    there["distances"] = {}
    assert not any("KID" in row["name"] for row in report.comparison(here, there)["rows"])


def test_two_runs_of_one_name_are_told_apart(tmp_path):
    here, there = good_report(), good_report()
    there["reconstruction"]["ssim"]["mean"] = 0.97
    here |= {"comparison": report.comparison(here, there), "summary": [], "warnings": []}
    report.write_page(tmp_path / "index.html", here, {})
    page = (tmp_path / "index.html").read_text()
    assert page.count(f"{here['run']} (other)") > 1
    assert f"{here['run']} (this)" in page


@pytest.mark.parametrize(
    ("value", "digits", "text"), [(-0.4, 0, "0"), (-0.004, 2, "0.00"), (-1.5, 1, "−1.5"), (None, 1, "–")]
)
def test_nothing_has_no_sign(value, digits, text):
    assert num(value, digits) == text
