"""The report: one file, safe, and alive in a browser where there is one."""

import base64
import http.server
import itertools
import json
import math
import queue
import re
import shutil
import subprocess
import threading
import urllib.parse
from html.parser import HTMLParser

import numpy as np
import pytest

from data_pipelines import video_files
from tavr_jax.evaluation import page
from tavr_jax.evaluation.page import Cell, Medium, Plot, Report, Sample, Series, Table

EVIL = '<script>alert("x")</script> {{title}} & "quoted" http://example.org'
PNG = b"\x89PNG\r\n\x1a\n rest"


class _Elements(HTMLParser):
    """All elements with their attributes, and all text outside style and script."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text, self._inside = [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def clip():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (30, 32, 48, 3)).astype(np.uint8)
    return video_files.encode_mp4(frames, 25, 20)


def _report(clip, text=EVIL):
    cells = [[Cell(f"{v:.1f}", v), Cell(text, text)] for v in (2.0, 10.0, 1.0)]
    cells.append([Cell("n/a", None), Cell("last", "last")])
    size = (32, 48)
    return Report(
        title=text,
        introduction=[text],
        tables=[
            Table(text, text, [(text, text), ("b", "")], [(True, c) for c in cells])
        ],
        figures=[],
        samples=[
            Sample(
                text,
                text,
                25.0,
                [
                    Medium(text, [text], clip, size, True, True),
                    Medium("still", [], PNG, size, False, False),
                    Medium("other", [], clip, size, False, False),
                ],
            )
        ],
        plots=[Plot(text, [Series(text, [1, 2, 3], [0.5, float("nan"), 0.25])])],
        details=[],
        commands=[text],
        provenance={text: text},
    )


def test_the_page_refers_to_nothing_outside_itself(clip):
    text = page.render(_report(clip))
    for _, attributes in _Elements(text).found:
        for name, value in attributes.items():
            if name in ("src", "href", "data-video", "poster", "srcset", "action"):
                assert value.startswith("data:"), (name, value[:40])
    styles = "".join(re.findall(r"<style>(.*?)</style>", text, re.S))
    scripts = "".join(re.findall(r"<script>(.*?)</script>", text, re.S))
    assert "url(" not in styles
    assert "@import" not in styles
    for word in ("fetch(", "XMLHttpRequest", "import(", "http:", "https:"):
        assert word not in scripts
    assert "default-src 'none'" in text


def test_no_text_becomes_markup(clip):
    harmless, evil = page.render(_report(clip, "plain")), page.render(_report(clip))
    before, after = _Elements(harmless), _Elements(evil)
    assert [tag for tag, _ in before.found] == [tag for tag, _ in after.found]
    # title, heading, paragraph, table, headers, cells, captions, plot, command, facts
    assert after.text.count(EVIL) == before.text.count("plain") > 10


def test_media_are_inside_bit_for_bit(clip):
    found = _Elements(page.render(_report(clip))).found
    videos = [a["data-video"] for tag, a in found if tag == "video"]
    images = [a["src"] for tag, a in found if tag == "img"]
    assert [base64.b64decode(v.partition(",")[2]) for v in videos] == [clip, clip]
    assert base64.b64decode(images[0].partition(",")[2]) == PNG


def test_an_empty_report_has_no_empty_sections():
    text = page.render(Report("t", [], [], [], [], [], [], [], {}))
    assert "<h2>" not in text


@pytest.mark.parametrize("seed", range(5))
def test_a_plot_stays_inside_its_frame(seed):
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers(-8, 8)
    values = (rng.normal(size=60) + rng.normal()) * scale
    steps = np.sort(rng.integers(0, 10**6, 60)).astype(float)
    values[3] = math.inf
    figure = page.plot_svg(Plot("p", [Series("s", list(steps), list(values))]))
    width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', figure).groups())
    lines = re.findall(r'points="([^"]+)"', figure)
    assert len(lines) == 2  # the points, and a running mean
    for point in itertools.chain(*(line.split() for line in lines)):
        x, y = map(float, point.split(","))
        assert 0 <= x <= width
        assert 0 <= y <= height
    assert len(lines[0].split()) == 59  # what is not finite is left out


def test_constant_single_and_empty_series_can_be_drawn():
    assert "polyline" in page.plot_svg(Plot("p", [Series("s", [0, 1], [2.0, 2.0])]))
    assert "circle" in page.plot_svg(Plot("p", [Series("s", [5], [0.0])]))
    assert page.plot_svg(Plot("p", [Series("s", [1], [math.nan])])) == ""


# Waits for the videos, plays them together, seeks, sorts; tells what it saw.
_PROBE = """
<script>
(async () => {
  const wait = ms => new Promise(done => setTimeout(done, ms));
  const until = async test => {
    for (let i = 0; i < 80 && !test(); i++) await wait(50);
  };
  const sample = document.querySelector(".sample");
  sample.scrollIntoView();
  const videos = [...sample.querySelectorAll("video")];
  await until(() => videos.every(video => video.readyState >= 2));
  sample.querySelector(".play").click();
  await until(() => videos.every(video => video.currentTime > 0.1));
  const played = videos.every(video => video.currentTime > 0.1);
  sample.querySelector(".play").click();
  const scrub = sample.querySelector("input");
  scrub.value = 0.5;
  scrub.dispatchEvent(new Event("input"));
  const apartness = () => videos.map(video => Math.abs(video.currentTime - 0.5));
  await until(() => Math.max(...apartness()) < 0.01);
  const apart = Math.max(...apartness());
  document.querySelector("th button").click();
  const rows = [...document.querySelectorAll("tbody tr")];
  const order = rows.map(row => row.cells[0].innerText);
  location = "ADDRESS" + JSON.stringify([played, apart < 0.01, order]);
})();
</script>
"""


@pytest.fixture
def listener():
    """A server on this machine that keeps the query of the first request."""
    seen = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.put(urllib.parse.unquote(self.path))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", seen
        server.shutdown()
        thread.join()


def test_videos_play_together_and_tables_sort_in_chromium(clip, tmp_path, listener):
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no chromium on this machine")
    address, seen = listener
    path = tmp_path / "report.html"
    page.write(path, _report(clip))
    probe = _PROBE.replace("ADDRESS", address)
    path.write_text(path.read_text().replace("</body>", probe + "</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    flags += ["--autoplay-policy=no-user-gesture-required", "--window-size=1280,900"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([browser, *flags], **quiet) as process:
        try:
            found = json.loads(seen.get(timeout=40)[1:])
        finally:
            process.terminate()
    # all played; all at 0.5 s after the scrub; the table sorted, what is missing last
    assert found == [True, True, ["10.0", "2.0", "1.0", "n/a"]]
