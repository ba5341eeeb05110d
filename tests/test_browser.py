"""The report in a real browser, where one is installed: nothing broken, nothing from elsewhere, and it fits a phone."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_runs import Chain

pytest_plugins = ["tiny_run_fixtures"]

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Measures a page in a frame of a given width, and writes what it found in place of itself.
HARNESS = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="page" style="border:0;width:{width}px;height:800px" srcdoc="{page}"></iframe><script>
document.getElementById("page").addEventListener("load", (event) => {{
  const page = event.target.contentDocument, root = page.documentElement;
  const wide = [...page.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > {width} + 1
    && !e.parentElement.closest(".scroll") && !e.closest(".scroll")).map((e) => e.outerHTML.slice(0, 80));
  const found = {{
    images: page.images.length,
    broken: [...page.images].filter((image) => !image.naturalWidth || !image.alt).map((image) => image.alt),
    width: root.scrollWidth,
    narrowest: Math.min(...[...page.images].map((image) => image.getBoundingClientRect().width)),
    wide: wide.slice(0, 3),
    outside: event.target.contentWindow.performance.getEntriesByType("resource").map((entry) => entry.name)
      .filter((name) => !name.startsWith("data:")),
    headings: page.querySelectorAll("h2").length,
  }};
  const told = document.createElement("pre");
  told.id = "found";
  told.textContent = JSON.stringify(found);
  document.body.replaceChildren(told);
}});
</script>"""


def looked_at(page: Path, folder: Path, width: int, *flags: str) -> dict:
    """What the browser finds in a page; fails for errors on its console."""
    assert BROWSER is not None
    harness = folder / f"harness-{width}.html"
    harness.write_text(HARNESS.format(width=width, page=html.escape(page.read_text(), quote=True)))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--enable-logging=stderr", *flags]
    command += [f"--window-size={width + 40},900", "--virtual-time-budget=20000", f"--user-data-dir={folder}/profile"]
    done = subprocess.run([*command, harness.as_uri()], capture_output=True, text=True)
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stdout[-500:] + done.stderr[-500:]
    assert "CONSOLE" not in done.stderr, done.stderr
    return json.loads(html.unescape(match[1]))


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here; .ci/run installs it")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_is_whole_in_a_browser(chain: Chain, tmp_path: Path, width: int):
    found = looked_at(chain.run / "report" / "index.html", tmp_path, width)
    assert found["images"] >= 10
    assert found["broken"] == []
    assert found["outside"] == []
    assert found["headings"] >= 6
    assert found["width"] <= width, found["wide"]
    assert found["narrowest"] >= (640 if width < 640 else 300), "on a phone figures scroll, and can be read"


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here; .ci/run installs it")
def test_what_is_broken_is_noticed(tmp_path: Path):
    page = tmp_path / "page.html"
    page.write_text(
        '<!doctype html><body><img src="data:image/png;base64,AAAA" alt="none"><div style="width:900px">x</div></body>'
    )
    found = looked_at(page, tmp_path, 390)
    assert found["broken"] == ["none"]
    assert found["width"] > 390
    page.write_text("<!doctype html><body><script>console.error('gone')</script></body>")
    with pytest.raises(AssertionError, match="gone"):
        looked_at(page, tmp_path, 390)
