"""The page of `edge report` in a browser: nothing overlaps, nothing sticks out, light and dark, wide and on a phone.

`make test-browser` runs it. Without a browser it fails.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from bench_fakes import run
from commands import call
from PIL import Image

from edge.bench import results

pytestmark = pytest.mark.browser
WIDTHS = (390, 900)
# Runs in a frame as wide as the window is meant to be: a headless window itself has a least width.
LOOK = """
<body style="margin:0"><iframe id="f" style="border:0;width:WIDTHpx;height:3400px" srcdoc="PAGE"></iframe>
<pre id="found"></pre><script>
document.getElementById("f").onload = (event) => {
  const page = event.target.contentDocument, root = page.documentElement, found = {overlaps: [], outside: [], texts: 0};
  for (const svg of page.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect();
    if (!frame.width) continue;
    const texts = [...svg.querySelectorAll("text")].map((t) => [t.textContent.trim(), t.getBoundingClientRect()]);
    found.texts += texts.length;
    for (const [words, box] of texts)
      if (box.left < frame.left - 1 || box.right > frame.right + 1 ||
          box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
        found.outside.push(words);
    texts.forEach(([a, x], i) => texts.slice(i + 1).forEach(([b, y]) => {
      if (x.left < y.right - 1 && y.left < x.right - 1 && x.top < y.bottom - 2 && y.top < x.bottom - 2)
        found.overlaps.push(a + " / " + b);
    }));
  }
  found.scrolls = root.scrollWidth > root.clientWidth;
  found.plots = [...page.querySelectorAll("svg")].filter((svg) => svg.getBoundingClientRect().width).length;
  found.background = getComputedStyle(page.body).backgroundColor;
  const heights = [...page.querySelectorAll("svg text")].map((text) => text.getBoundingClientRect().height);
  found.small = Math.min(...heights.filter(Boolean));
  document.getElementById("found").textContent = JSON.stringify(found);
};
</script>
"""


@pytest.fixture(scope="module")
def browser() -> str:
    named = os.environ.get("BROWSER") or "chromium"
    found = shutil.which(named)
    assert found, f"no browser {named!r}: make test-browser finds one, or BROWSER=/path/to/one"
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Many bundles with long names, and one that throttles."""
    folder = tmp_path_factory.mktemp("report")
    long = "a-rather-long-name-of-a-checkpoint-1.7B w8a8+q4_k_m"
    results.write(folder / "one.json", run(seconds=300) + run(1.4, seconds=300, model_type=long, n_threads=2))
    results.write(
        folder / "two.json", run(0.02, model_type="a", memory_limit_bytes=900_000_000, backends="onnxruntime")
    )
    said = call("report", folder / "one.json", folder / "two.json", "-o", folder / "page.html", "--bandwidth", 17.1)
    assert said.code == 0, said.err
    return (folder / "page.html").read_text(encoding="utf-8")


def start(browser: str, folder: Path, text: str, dark: bool, width: int, *options: str) -> str:
    (folder / "look.html").write_text(text, encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    window = (f"--window-size={max(width, 500)},3500", f"--user-data-dir={folder}/profile", "--hide-scrollbars")
    safe = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
    command = [browser, *safe, scheme, *window, *options, (folder / "look.html").as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def framed(page: str, width: int) -> str:
    inside = page.replace("&", "&amp;").replace('"', "&quot;")
    return LOOK.replace("WIDTH", str(width)).replace("PAGE", inside)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_overlaps_or_sticks_out(browser: str, page: str, tmp_path: Path, dark: bool, width: int) -> None:
    dumped = start(browser, tmp_path, framed(page, width), dark, width, "--dump-dom")
    match = re.search(r'<pre id="found">(.+?)</pre>', dumped)
    assert match, "the page did not load"
    found = json.loads(match[1].replace("&amp;", "&").replace("&gt;", ">").replace("&lt;", "<"))
    assert (found["overlaps"], found["outside"], found["scrolls"]) == ([], [], False)
    assert found["plots"] == 4 and found["texts"] > 60
    assert found["small"] >= 9  # pixels
    assert found["background"] == ("rgb(18, 22, 28)" if dark else "rgb(255, 255, 255)")


def test_the_look_finds_what_overlaps(browser: str, page: str, tmp_path: Path) -> None:
    """The test itself can fail: a label moved onto another is found, and one beyond the edge."""
    texts = {"on top": (100, 50), "of it": (102, 52), "out": (9999, 9)}
    added = "".join(f'<text x="{x}" y="{y}">{word}</text>' for word, (x, y) in texts.items())
    moved = page.replace("tokens per second</text>", f"tokens per second</text>{added}")
    dumped = start(browser, tmp_path, framed(moved, 900), False, 900, "--dump-dom")
    assert '"on top / of it"' in dumped and '"out"' in dumped


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_screenshot_shows_bars_on_paper(browser: str, page: str, tmp_path: Path, dark: bool) -> None:
    start(browser, tmp_path, page, dark, 900, f"--screenshot={tmp_path}/shot.png")
    with Image.open(tmp_path / "shot.png") as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    paper = (18, 22, 28) if dark else (255, 255, 255)
    vision, decoding = ((88, 176, 232), (63, 182, 139)) if dark else ((11, 132, 198), (18, 128, 92))
    share = {c: float((colours == c).all(axis=1).mean()) for c in (paper, vision, decoding)}
    assert share[paper] > 0.1
    assert share[vision] > 0.002 and share[decoding] > 0.005
