"""Pages and TensorBoard as a reader sees them, in a headless Chromium."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from report.browser import browser, needs_chromium
from report.results import results
from torch.utils.tensorboard import SummaryWriter

from lit_compress.report.figures import FIGURES
from lit_compress.report.hyperparameters import experiment
from lit_compress.report.save import save_report

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_report(results(), tmp_path_factory.mktemp("runs") / "student" / "report")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report(page, folder, width, scheme, tmp_path):
    url = (folder / "report.html").as_uri()
    page.open(url, width, scheme)
    assert page.problems() == []
    assert [sent for sent in page.requests() if not sent.startswith("data:")] == [url]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    measured = "[s.clientWidth, s.clientHeight, s.querySelectorAll('path, image').length]"
    boxes = page.evaluate(f"[...document.querySelectorAll('figure svg')].map(s => {measured})")
    assert len(boxes) == len(FIGURES)
    for box_width, box_height, marks in boxes:
        assert 250 < box_width <= width
        assert box_height > 80
        assert marks > 0
    letters = page.evaluate("[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)")
    assert min(letters) > 8
    assert page.evaluate("document.scripts.length") == 0
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 29)"
    assert dark == (scheme == "dark")
    assert page.screenshot(tmp_path / "page.png").stat().st_size > 20_000


def test_text_can_be_read_on_its_background(page, folder):
    """WCAG AA: 4.5 to 1 for every color of text, in both forms."""
    script = """(() => {
      const light = c => {
        const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
        const [r, g, b] = c.match(/[0-9.]+/g).slice(0, 3).map(v => linear(v / 255))
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
      }
      const paper = light(getComputedStyle(document.body).backgroundColor)
      const ratio = l => (Math.max(l, paper) + 0.05) / (Math.min(l, paper) + 0.05)
      return Math.min(...[...document.querySelectorAll('p, a, li, th, td, summary, figcaption, strong, span')]
        .map(e => ratio(light(getComputedStyle(e).color)))) })()"""
    for scheme in ("light", "dark"):
        page.open((folder / "report.html").as_uri(), 1280, scheme)
        assert page.evaluate(script) >= 4.5


@pytest.fixture(scope="module")
def tensorboard(folder):
    with SummaryWriter(str(folder.parent)) as writer:
        for summary in experiment({"learning_rate": 0.1}, {"val/accuracy": 0.25, "val/f1": 0.5, "val/loss": 1.0}):
            writer._get_file_writer().add_summary(summary)
        writer.add_scalar("val/accuracy", 0.25)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--logdir", str(folder.parents[1]), "--host=127.0.0.1", f"--port={port}"]
    command = [sys.executable, "-m", "tensorboard.main", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


# TensorBoard hides its elements in shadow trees.
ALL = """const inside = e => e.shadowRoot ? all(e.shadowRoot) : []
const all = root => [...root.querySelectorAll('*')].flatMap(e => [e, ...inside(e)])"""
LARGE = "all(document).filter(e => e.tagName == 'IMG' && e.complete && e.naturalWidth > 100).length"
TEXT = "all(document).flatMap(e => [...e.childNodes]).filter(n => n.nodeType == 3).map(n => n.data).join(' ')"


def wait_for(page, expression, good):
    """The value of an expression as soon as it is good; what it is after a minute otherwise."""
    for _ in range(120):
        value = page.evaluate(f"(() => {{ {ALL}; return {expression} }})()")
        if good(value):
            break
        time.sleep(0.5)
    return value


def test_the_figures_in_tensorboard(page, tensorboard, tmp_path):
    page.open(f"{tensorboard}#images", 1280, height=2400)
    assert wait_for(page, LARGE, lambda count: count == len(FIGURES)) == len(FIGURES)
    page.screenshot(tmp_path / "images.png")


def test_the_final_metrics_beside_the_settings_in_tensorboard(page, tensorboard, tmp_path):
    page.open(f"{tensorboard}#hparams", 1280)
    wanted = ("learning_rate", "report/accuracy_dense", "0.91000")
    text = wait_for(page, TEXT, lambda text: all(word in text for word in wanted))
    assert [word for word in wanted if word not in text] == []
    page.screenshot(tmp_path / "hparams.png")
