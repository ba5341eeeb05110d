"""Whether samples follow the labels that they were asked for, in sentences, from the figures alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from vqvae2.report.markup import num

__all__ = ["class_followed", "label_warnings", "labels_followed", "number_followed"]

Report = Mapping[str, Any]
Answer = Literal["yes", "no", "against", "unknown"]
Interval = Sequence[float] | None


def labels_followed(report: Report) -> Iterator[str]:
    """Say in a sentence for each label that was looked for whether samples follow it."""
    for _, told in _answers(report):
        yield told
    found = report.get("phantom", {})
    if "ventricle_difference_ratio" in found:
        yield (
            f"Labels: the difference in ventricle area between samples of the two labels is "
            f"{num(100 * found['ventricle_difference_ratio'], 0)}% of the true one."
        )


def label_warnings(report: Report) -> Iterator[str]:
    """Say which labels samples do not follow."""
    for answer, told in _answers(report):
        if answer == "no":
            yield f"{told} More samples give a clearer answer; sampling with --guidance strengthens a label."
        elif answer == "against":
            yield f"{told} Labels may be mixed up."
    found = report.get("phantom", {})
    ratio = found.get("ventricle_difference_ratio")
    if ratio is not None and not ratio >= 0.5:
        share = num(100 * ratio, 0)
        yield f"Labels have too little effect: the difference in ventricle area is {share}% of the true one."
    for name, figures in found.get("labels", {}).items():
        if figures["nan"]:
            yield f"In {figures['nan']} of {figures['samples']} samples labelled {name} no head could be found."


def _answers(report: Report) -> Iterator[tuple[Answer, str]]:
    judged = report.get("recognition", {})
    if "recognised" in judged:
        yield class_followed(judged)
    for name, figures in report.get("samples", {}).get("numbers", {}).items():
        yield number_followed(name, figures)


def class_followed(found: Mapping[str, Any]) -> tuple[Answer, str]:
    """Say whether samples are recognised as their class more often than if labels were shuffled among them.

    Args:
        found: the report's ``recognition``, with ``recognised``.
    """
    told, known = (
        f"{side['accuracy']:.2f} {word}, {side['chance']:.2f} by chance"
        + _between(side["over_chance"], "interval of the difference")
        for side, word in ((found["recognised"], "recognised"), (found["held_out"], "of held-out images recognised"))
    )
    made, real = found["recognised"]["over_chance"], found["held_out"]["over_chance"]
    return _answer(found["attribute"], made, told, real, known)


def number_followed(name: str, found: Mapping[str, Any]) -> tuple[Answer, str]:
    """Say whether samples show more of a number the more of it was asked for.

    Args:
        name: of the label.
        found: as `vqvae2.report.number_figures` returns it.
    """
    made, real = found["samples"], found["reconstructions"]
    told, known = (
        f"the {name} that {what} rises by {side['slope']:.2f} for each 1 {given}, 0 by chance"
        + _between(side["interval"], "95% interval")
        for side, what, given in (
            (made, "they show", "asked for"),
            (real, "reconstructions of held-out images show", "that these have"),
        )
    )
    return _answer(name, made["interval"], told, real["interval"], known)


def _answer(name: str, made: Interval, told: str, real: Interval, known: str) -> tuple[Answer, str]:
    """The answer, from the interval of what samples have beyond chance, and from that of real images."""
    if made is None:
        return "unknown", f"Too few samples to tell whether they follow {name}: {told}."
    if made[0] > 0:
        return "yes", f"Samples follow {name}: {told}."
    if made[1] < 0:
        return "against", f"Samples go against {name}: {told}."
    if real is not None and not real[0] > 0:
        return "unknown", f"It is unclear whether samples follow {name}, as real images do not show it: {known}."
    return "no", f"Whether samples follow {name} cannot be told from chance: {told}."


def _between(interval: Interval, of: str) -> str:
    return "" if interval is None else f" ({of} {interval[0]:.2f} to {interval[1]:.2f})"
