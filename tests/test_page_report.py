"""The page of an evaluation: what it carries, and how it behaves in a browser."""

import http.server
import json
import queue
import re
import shutil
import subprocess
import threading
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import video_files
from tavr_jax.evaluation import benchmark, page, page_data, page_report

EVIL = """'"><script>window.hacked=1</script>{{board}} 100% %41 </script><!-- <b>"""
NAMES = {
    "truth": "Ground truth",
    "still": "Still, repeated",
    "one": f"First {EVIL}",
    "two": "Second",
    "three": "Third",
}
COUNT, SHOWN = 30, 13  # samples; of them inside the page


def _results(name=NAMES["one"]):
    """Results of random scores, as launch.evaluate writes them."""
    rng = np.random.default_rng(1)
    samples = [
        {
            "key": f"{i:03d} {name}",
            "person": f"{'ab'[i % 2]} {name}",
            "reference": f"reference {name}",
            "target": "t",
            "caption": f"says {name}",
            "seconds": 2.8,
            "size": [32, 48],
        }
        for i in range(COUNT)
    ]
    records = {
        slug: [
            {m.key: float(rng.normal(index, 4)) for m in benchmark.METRICS}
            for _ in range(COUNT)
        ]
        for index, slug in enumerate(NAMES)
    }
    records["three"][0] = dict.fromkeys(records["three"][0])
    mine = [("two", "one"), ("three", "one"), ("three", "two")]
    people = [sample["person"] for sample in samples]
    rows = {
        slug: {
            "name": name if slug == "one" else label,
            "protocol": "video",
            "provenance": {},
            "made_with": {},
        }
        for slug, label in NAMES.items()
    }
    about = {"name": name, "sha256": "0", "samples": COUNT, "complete": True}
    return {
        "version": benchmark.VERSION,
        "command": f"python -m launch.evaluate {name}",
        "level": 0.95,
        "seed": 0,
        "benchmark": about | {"missing": {}},
        "rows": rows,
        "methods": {m.key: m._asdict() for m in benchmark.METRICS},
        "samples": samples,
        "scores": {
            slug: {m.key: [scores[m.key] for scores in row] for m in benchmark.METRICS}
            for slug, row in records.items()
        },
        "failures": {"three": {samples[0]["key"]: ["missing"]}},
        "summary": {
            slug: _plain(benchmark.summarise(row, people, 0.95, 0))
            for slug, row in records.items()
        },
        "comparisons": {
            f"{a}|{b}": _plain(
                benchmark.compare(records[a], records[b], people, 0.95, 0)
            )
            for a, b in mine
        },
    }


def _plain(value):
    """As it comes back from a file."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return _plain(value._asdict()) if hasattr(value, "_asdict") else value


@pytest.fixture(scope="module")
def evaluated():
    return _results()


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Videos of every sample, in folders whose names a URL has to escape."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (70, 32, 48, 3)).astype(np.uint8)
    clip = video_files.encode_mp4(frames, 25, 20)
    short = video_files.encode_mp4(frames[:45], 25, 20)
    root = tmp_path_factory.mktemp("a #1% folder")
    for i in range(COUNT):
        folder = _folder(root, i)
        folder.mkdir(parents=True)
        for slug in NAMES:
            if (i, slug) != (0, "three"):
                (folder / f"{slug}.mp4").write_bytes(clip)
        (folder / "reference.mp4").write_bytes(short)
    return root


def _folder(root, index):
    return root / "videos" / f"{index} ? 50%"


def _report(found, output, name=NAMES["one"]):
    folders = [_folder(output, i) for i in range(COUNT)]
    return page_report.Report(
        title=name,
        warnings=page_data.warnings(found),
        introduction=[name],
        board=page_data.board(found, folders, 25, output, SHOWN),
        sweep=page_data.sweep(found),
        tables=[],
        plots=[page.Plot(name, [page.Series(name, [1, 2], [0.5, 0.25])])],
        details=[page.Table(name, name, [(name, name)], [])],
        commands=[found["command"]],
        provenance={name: name},
    )


class _Tags(HTMLParser):
    """Elements of a page, in order."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_no_text_becomes_markup_and_the_data_survive(evaluated, output):
    evil = page_report.render(_report(evaluated, output))
    plain = page_report.render(_report(_results("plain"), output, "plain"))
    assert [t for t, _ in _Tags(evil).found] == [t for t, _ in _Tags(plain).found]
    found = re.search(r'id="board">(.*?)</script>', evil, re.S)[1]
    board = json.loads(found)
    assert board["samples"][3]["caption"] == f"says {NAMES['one']}"
    assert board == json.loads(json.dumps(_report(evaluated, output).board))


def test_the_page_names_nothing_outside_its_folder(evaluated, output):
    text = page_report.render(_report(evaluated, output))
    for _, attributes in _Tags(text).found:
        for name in {"src", "href", "poster", "srcset", "action"} & set(attributes):
            assert attributes[name].startswith("data:")
    scripts = text[text.rindex("<script>") :]
    for word in ("fetch(", "XMLHttpRequest", "import(", "http:", "https:", "innerHTML"):
        assert word not in scripts
    assert "default-src 'none'" in text
    board = _report(evaluated, output).board
    for index, sample in enumerate(board["samples"]):
        for name, address in sample["files"].items():
            there = output / urllib.parse.unquote(address)
            assert there.samefile(_folder(output, index) / name)


def test_videos_inside_are_the_first_shown_and_have_a_limit(
    evaluated, output, monkeypatch
):
    def inside():
        board = _report(evaluated, output).board
        media = board["media"]
        whole = [s for s in board["samples"] if set(s["files"].values()) <= set(media)]
        assert sum(len(s["files"]) for s in whole) == len(media)  # whole samples only
        return {int(s["key"].split()[0]) for s in whole}, sum(map(len, media.values()))

    ranked = page_data.ranked(evaluated, "three", "identity")
    shown, size = inside()
    assert len(shown) == SHOWN
    assert {*ranked[:6], *ranked[-6:]} < shown
    monkeypatch.setattr(page_data, "ROOM", size // 3)
    fewer, smaller = inside()
    assert ranked[0] in fewer
    assert fewer < shown
    assert size // 6 < smaller <= size // 3


def test_what_is_missing_is_said_before_any_number(evaluated, output):
    part = evaluated["benchmark"] | {"complete": False, "samples": 158}
    part["missing"] = {"007_x": "no <video> of it"}
    text = page_report.render(_report(evaluated | {"benchmark": part}, output))
    told = text.index("30 of 158")
    assert told < text.index("007_x: no &lt;video&gt; of it") < text.index("<h2")
    assert "of 158" not in page_report.render(_report(evaluated, output))


def test_frame_count_curves_are_there_if_they_were_swept(evaluated, output):
    curve = {"k": [1, 4], "mean": [0.5, 0.6], "low": [0.4, None], "high": [0.7, None]}
    lone = {"k": [4], "mean": [0.5], "low": [None], "high": [None]}
    swept = evaluated | {"sweep": {"identity": {"one": curve, "two k": lone}}}
    text = page_report.render(_report(swept, output))
    assert text.count('<polygon class="band"') == 1  # the other one has no interval
    assert "two k (0.5 at 4)" in text
    for without in (evaluated, evaluated | {"sweep": {}}):
        assert 'id="sweep"' not in page_report.render(_report(without, output))


def test_bands_stay_inside_the_plot():
    series = page.Series("s", [1, 2, 9], [0.1, 0.2, 0.3], [(-9, 1), (0, 50), (0, 1)])
    figure = page.plot_svg(page.Plot("p", [series]))
    width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', figure).groups())
    edge = re.search(r'<polygon[^>]* points="([^"]+)"', figure)[1].split()
    points = [tuple(map(float, p.split(","))) for p in edge]
    assert len(points) == 6
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
    assert len({y for _, y in points}) > 3


# Watches for what must not happen, from before the page's own script.
_WATCH = """<script>
window.wrong = [];
for (const kind of ["error", "unhandledrejection", "securitypolicyviolation"]) {
  addEventListener(kind, e =>
    wrong.push(`${kind} ${e.message || e.reason || e.blockedURI}`));
}
console.error = console.warn = (...told) => wrong.push(told.join(" "));
</script>"""

# Uses the page as a reader does and tells what it saw.
_PROBE = Path(__file__).with_name("page_probe.js")


@pytest.fixture(scope="module")
def seen(evaluated, output):
    """What a probe saw in Chromium, and every request that this machine got."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no chromium on this machine")
    asked = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.put(urllib.parse.unquote(self.path))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/"
        try:
            yield _browse(browser, evaluated, output, address, asked)
        finally:
            server.shutdown()
            thread.join()


def _browse(browser, evaluated, output, address, asked):
    evil = f"<img src={address}caption onerror='window.hacked=1'>"
    found = json.loads(json.dumps(evaluated))
    for sample in found["samples"]:
        sample["caption"] += evil
    path = output / "report.html"
    page_report.write(path, _report(found, output))
    (_folder(output, 0) / "one.mp4").unlink()  # as if the page had been sent alone
    probe = f"<script>{_PROBE.read_text().replace('ADDRESS', address)}</script>"
    text = path.read_text().replace("<style>", _WATCH + "<style>", 1)
    head, tail = text[: text.rindex("</body>")], text[text.rindex("</body>") :]
    path.write_text(head + probe + tail)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    flags += ["--autoplay-policy=no-user-gesture-required", "--window-size=1280,900"]
    flags += [f"--user-data-dir={output / 'profile'}", path.as_uri()]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([browser, *flags], **quiet) as process:
        try:
            return json.loads(asked.get(timeout=60)[1:])
        finally:
            process.terminate()


def test_nothing_goes_wrong_in_the_browser(seen):
    # What was asked first is what was seen: no request came before it.
    assert seen["wrong"] == []
    assert seen["hacked"] == 0
    assert set(seen["loaded"]) <= {"data:", "file:"}
    assert "<img src=http://127.0.0.1" in seen["caption"]
    assert seen["unlabelled"] == 0
    assert seen["wide"] <= 0  # the page itself never scrolls sideways


def test_the_leaderboard_sorts_and_keeps_its_marks_in_place(seen, evaluated):
    def best_first(key, size):
        means = {slug: evaluated["summary"][slug][key]["mean"] for slug in NAMES}
        return sorted(["one", "two", "three"], key=lambda slug: size(means[slug]))

    def framed(rows):
        return ["truth", *rows, "still"]

    identity = best_first("identity", lambda v: -v)
    assert identity != identity[::-1]
    assert seen["sorts"] == [
        framed(["one", "two", "three"]),
        framed(identity),
        "descending",
        framed(identity[::-1]),
        "ascending",
        framed(best_first("leak", float)),
        "ascending",
        framed(best_first("sharpness", lambda v: abs(v - 1))),
        "ascending",
    ]
    assert seen["against"] == 2 * len(page_data.MAIN)  # two rows against the third


def test_a_dot_a_sample_joined_between_two_rows(seen):
    assert seen["dots"] == len(NAMES) * COUNT - 1  # one is missing
    assert seen["joins"] == COUNT - 1
    circles, told = seen["traced"]
    assert circles == len(NAMES)
    assert "Second" in told


def test_worst_and_best_follow_the_chosen_metric(seen, evaluated):
    for key, metric in (
        ("first", "identity"),
        ("other", "psnr"),
        ("ratio", "sharpness"),
    ):
        ranked = page_data.ranked(evaluated, "three", metric)
        assert seen[key] == [ranked[:6], ranked[::-1][:6]]
    assert seen["first"] != seen["other"]


def test_filters_hide(seen):
    assert len(seen["listed"][0]) == 12
    assert all(i % 2 == 0 for i in seen["person"][0])
    assert len(seen["person"][0]) == 12
    assert seen["missing"] == [[0]]
    assert seen["without"] == ["no video"]
    assert len(seen["watched"][0]) == 1


def test_all_videos_in_view_share_one_clock(seen):
    loaded, every = seen["lazy"]
    assert 5 < loaded < every
    place = "./videos/0 ? 50%/one.mp4"
    told = f"not in this page: it plays from {place} beside it"
    assert seen["gone"] == [told, "no video"]
    assert 0 < seen["linked"] < loaded  # some from the folder, some inside the page
    assert seen["running"]
    assert seen["apart"] < 0.08
    assert seen["paused"]
    assert 0.1 < seen["slow"] < 0.5  # it was asked to be 0.25
    assert seen["scrubbed"] < 0.01
    assert seen["heard"] == [0, 1, 1]
    assert seen["scores"] == 1 + len(benchmark.METRICS)
