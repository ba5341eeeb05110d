"""Pieces of HTML that the report's page is made of."""

import math
from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from vqvae2.report.captions import ALTERNATIVES, CAPTIONS


class Figure(NamedTuple):
    """A drawn figure: its width, of 10 that the page is wide, and the bytes of its PNG."""

    width: float
    png: bytes


def pictures(names: Sequence[str], known: Mapping[str, Figure]) -> str:
    """Figures with their captions, as far as they are known; the pictures are inside the page."""
    parts = []
    for name in names:
        if name in known:
            title, caption = CAPTIONS[name]
            source = f"data:image/png;base64,{b64encode(known[name].png).decode()}"
            seen, width = escape(ALTERNATIVES[name]), 10 * known[name].width
            parts.append(
                f'<figure><div class="scroll"><img src="{source}" alt="{seen}" style="width:{width:.0f}%"></div>'
                f"<figcaption><b>{escape(title)}.</b> {escape(caption)}</figcaption></figure>\n"
            )
    return "".join(parts)


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: int = 1,
    naive: str | Collection[str] = "",
) -> str:
    """A table whose first ``left`` columns are text; rows that begin with one of ``naive`` are set back.

    Its caption says of what the figures are, and of how many.
    """
    set_back = {naive} if isinstance(naive, str) else set(naive)

    def line(cells: Sequence[str], tag: str) -> str:
        marks = [' class="text"' if i < left else "" for i in range(len(cells))]
        return "".join(f"<{tag}{mark}>{escape(cell)}</{tag}>" for mark, cell in zip(marks, cells, strict=True))

    kinds = [' class="naive"' if row[0] in set_back else "" for row in rows]
    body = "".join(f"<tr{kind}>{line(row, 'td')}</tr>" for kind, row in zip(kinds, rows, strict=True))
    kind = "scroll narrow" if len(head) == 2 and left == 1 else "scroll"
    return (
        f'<div class="{kind}"><table><caption>{escape(caption)}</caption><thead><tr>{line(head, "th")}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def bullets(lines: Sequence[str], strong: bool = False) -> str:
    """A list; ``strong`` sets what stands before a line's colon in bold."""
    items = []
    for line in lines:
        head, colon, rest = line.partition(":") if strong else ("", "", line)
        items.append(f"<li><b>{escape(head)}</b>{colon}{escape(rest)}</li>" if colon else f"<li>{escape(line)}</li>")
    return f"<ul>{''.join(items)}</ul>"


def spread(mean: float | None, std: float | None, digits: int) -> str:
    """Mean and, where it is known, standard deviation; a dash where there is no mean."""
    if std is None:
        return num(mean, digits)
    return "–" if mean is None or not math.isfinite(mean) else f"{num(mean, digits)} ± {num(std, digits)}"


def mean(figures: Mapping[str, Any], digits: int) -> str:
    """A mean with the 95% interval that a bootstrap over subjects gives it, where there is one."""
    if not figures.get("interval") or not math.isfinite(figures["mean"]):
        return spread(figures["mean"], figures.get("std"), digits)
    low, high = figures["interval"]
    return f"{num(figures['mean'], digits)} ({num(low, digits)} to {num(high, digits)})"


def num(value: float | None, digits: int) -> str:
    """A number with a proper minus; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return (text.removeprefix("-") if float(text) == 0 else text).replace("-", "−")
