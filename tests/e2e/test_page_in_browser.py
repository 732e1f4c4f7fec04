"""The page of `edge serve` in a browser, as a person uses it: a picture, questions, stop, the camera, the proof.

`make test-browser` runs it. Without a browser it fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import chromium
import numpy as np
import pytest
from chromium import Page
from conftest import REPOSITORY
from exported import Exports
from PIL import Image
from serving import serving

pytestmark = pytest.mark.browser
DEMO = REPOSITORY / "exporters" / "demo"
SHAPES, SIGN = (DEMO / "pictures" / name for name in ("shapes.png", "sign.png"))
SIZES = {"phone": (360, 740, True), "desktop": (1200, 800, False)}
READY = "document.body.dataset.ready === 'yes'"
KEY = "correct-horse-battery"


@pytest.fixture(scope="module")
def demo(exports: Exports) -> Path:
    return exports.bundle(checkpoint=DEMO / "checkpoint", calib=REPOSITORY / "calib_data")


@pytest.fixture(scope="module")
def address(demo: Path) -> Iterator[str]:
    with serving(demo) as (_, found):
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium.page(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def page(browser: Page, address: str) -> Iterator[Page]:
    browser.size(1200, 800)
    browser.said.clear()
    browser.open(f"{address}/")
    browser.wait(READY)
    yield browser
    assert browser.said == []


def ask(page: Page, question: str, answers: int, *pictures: Path) -> str:
    if pictures:
        page.choose("#choose", pictures)
        page.wait(f"document.querySelectorAll('#pictures img').length === {len(pictures)}")
    page.click("#question")
    page.type(question)
    page.click("#send")
    page.wait(f"document.querySelectorAll('.times').length === {answers}")
    found: str = page.value("[...document.querySelectorAll('.theirs p:not(.times)')].at(-1).textContent")
    return found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_a_picture_is_asked_about(page: Page, size: str, dark: bool, tmp_path: Path) -> None:
    width, height, phone = SIZES[size]
    page.size(width, height, dark=dark, phone=phone)
    assert ask(page, "What colour is the star?", 1, SHAPES) == "Yellow."
    assert ask(page, "How many stars are there?", 2) == "One."
    times = page.value("[...document.querySelectorAll('.times')].map((e) => e.textContent)")
    assert "first token" in times[0] and "tokens/s" in times[0] and "memory" in times[0]
    assert " 0 reused" not in times[1]
    assert page.value("document.documentElement.scrollWidth <= innerWidth")
    small = page.value(
        "[...document.querySelectorAll('button, .button, select, textarea, summary')].filter((e) => e.offsetParent)"
        ".filter((e) => e.getBoundingClientRect().height < 32).map((e) => e.id || e.textContent)"
    )
    assert small == []
    page.screenshot(tmp_path / "shot.png")
    with Image.open(tmp_path / "shot.png") as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    paper, star = ((18, 22, 28) if dark else (255, 255, 255)), (244, 208, 32)
    assert (colours == paper).all(axis=1).mean() > 0.3
    assert (np.abs(colours.astype(int) - star).max(axis=1) < 24).any(), "the picture is seen"


def test_several_pictures_and_a_new_conversation(page: Page) -> None:
    assert ask(page, "What does the sign say?", 1, SHAPES, SIGN)
    assert page.value("document.querySelectorAll('.mine img').length") == 2
    page.choose("#choose", [SHAPES])
    page.wait("document.querySelectorAll('#pictures img').length === 1")
    page.click("#pictures button")
    page.wait("document.querySelectorAll('#pictures img').length === 0")
    page.click("#fresh")
    assert page.value("document.querySelectorAll('.said').length") == 0
    assert ask(page, "What does the sign say?", 1, SIGN) == "OWL."


def test_the_keyboard_is_enough(page: Page, tmp_path: Path) -> None:
    """Every control is reached by Tab, shows that it is, has a name, and Enter asks."""
    reached: list[str] = []
    for _ in range(14):
        page.press("Tab", 9)
        found = page.value(
            "(() => { const e = document.activeElement, s = getComputedStyle(e), label = e.labels?.[0];"
            " const shown = s.outlineStyle !== 'none' || (label && getComputedStyle(label).outlineStyle !== 'none');"
            " const name = e.ariaLabel || label?.textContent || e.textContent;"
            " return [e.id || e.className || e.tagName, shown, name.trim()]; })()"
        )
        reached.append(found[0])
        assert found[0] == "BODY" or (found[1] and found[2]), found
    assert {"skip", "model", "fresh", "take", "choose", "live", "question", "send"} <= set(reached)
    page.value("document.getElementById('question').focus()")
    page.type("Is there a star?")
    page.press("Enter", 13, "\r")
    page.wait("document.querySelectorAll('.times').length === 1")
    unnamed = page.value(
        "[...document.querySelectorAll('img, video, input, select, textarea, button')]"
        ".filter((e) => !(e.alt || e.ariaLabel || e.labels?.length || e.textContent.trim())).map((e) => e.id)"
    )
    assert unnamed == []


def test_an_answer_is_stopped(page: Page) -> None:
    page.value(
        "const real = window.fetch; window.fetch = (path, options) => real(path, options && options.body ?"
        " {...options, body: JSON.stringify({...JSON.parse(options.body), temperature: 2, max_tokens: 1800})}"
        " : options); 0"
    )
    page.click("#question")
    page.type("Tell me a story.")
    page.click("#send")
    page.wait("!document.getElementById('stop').hidden")
    page.click("#stop")
    page.wait("document.querySelectorAll('.times').length === 1")
    assert page.value("document.getElementById('stop').hidden")
    assert ask(page, "Is there a star?", 2)


def test_what_cannot_be_answered_is_said_and_kept(page: Page, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(SHAPES.read_bytes()[:200])
    page.choose("#choose", [tmp_path / "broken.png"])
    page.wait("document.querySelectorAll('#pictures img').length === 1")
    page.click("#question")
    page.type("What is it?")
    page.click("#send")
    page.wait("!document.getElementById('error').hidden")
    assert "cannot be read" in page.value("document.getElementById('error').textContent")
    assert page.value("document.getElementById('question').value") == "What is it?"
    assert page.value("document.querySelectorAll('.said').length") == 0
    page.said.clear()  # the browser's own line about the status


def test_a_picture_that_the_server_would_not_take_is_drawn_anew(page: Page, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (2200, 1500, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > 6_000_000
    page.choose("#choose", [tmp_path / "large.png"])
    page.wait("document.querySelectorAll('#pictures img').length === 1")
    assert page.value("document.querySelector('#pictures img').src").startswith("data:image/jpeg")
    page.wait("document.querySelector('#pictures img').naturalHeight === 2048")


def test_the_camera_is_looked_through(page: Page) -> None:
    page.click("#live")
    page.wait("document.getElementById('video').videoWidth > 0")
    page.click("#snap")
    page.wait("document.querySelectorAll('#pictures img').length === 1")
    page.click("#watch")
    page.wait("document.getElementById('seen').textContent.includes('picture 2')")
    page.click("#watch")
    page.click("#live")
    assert page.value("document.getElementById('camera').hidden")


def test_the_proof_and_a_benchmark(page: Page) -> None:
    page.click("#about summary")
    rows = page.value("[...document.querySelectorAll('#facts tr')].map((e) => e.innerText)")
    assert any("cosine" in row and "≥ 0.9999" in row for row in rows)
    assert any("w4" in row and "onnxruntime" in row for row in rows)
    page.click("#bench summary")
    page.click("#measure")
    page.wait("document.getElementById('measuring').textContent === 'Done.'", 240)
    assert page.value("document.querySelector('#rows a').download").endswith("-bench.json")
    shown = page.value("document.getElementById('rows').innerText")
    assert "tg64" in shown and "tokens/s" in shown and "peak memory" in shown and "MB" in shown


def test_a_key_is_asked_for(browser: Page, demo: Path) -> None:
    with serving(demo, "--api-key", KEY) as (_, address):
        browser.open(f"{address}/")
        browser.wait("document.getElementById('keys').open")
        browser.click("#key")
        browser.type(KEY)
        browser.press("Enter", 13, "\r")
        browser.wait(READY)
        assert ask(browser, "What colour is the star?", 1, SHAPES) == "Yellow."
    browser.said.clear()


def test_plain_http_from_another_machine_has_no_live_camera(browser: Page, demo: Path) -> None:
    """The browser gives no camera to a page that is not secure: taking a photo is left."""
    with serving(demo, "--host", "0.0.0.0", "--no-key") as (_, address):
        port = address.rpartition(":")[2]
        import socket

        own = socket.gethostbyname(socket.gethostname())
        browser.open(f"http://{own}:{port}/")
        browser.wait(READY)
        if not own.startswith("127."):
            assert browser.value("isSecureContext") is False
            assert browser.value("document.getElementById('live').hidden")
        assert browser.value("document.getElementById('take').getAttribute('capture')") == "environment"
