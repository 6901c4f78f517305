"""In processes of their own: the hub's package reads HF_HOME when it is imported."""

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch.weights_source import resolve
from tavr_jax.errors import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CODE = """
import json, sys, time
from launch import weights_source
from tavr_jax.errors import InputError, PassingError
weights_source._SECONDS = float(sys.argv[1])
for source in sys.argv[2:]:
    started = time.monotonic()
    try:
        answer = str(weights_source.resolve(source))
    except InputError as error:
        answer = f"error: {error}"
    except PassingError as error:
        answer = f"later: {error}"
    print(json.dumps([answer, time.monotonic() - started]))
"""


def ask(home: Path, endpoint: str, *sources: str, seconds=5.0, **variables) -> list:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, **variables}
    command = [sys.executable, "-c", CODE, str(seconds), *sources]
    done = subprocess.run(
        command,
        timeout=60,
        env=environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def nowhere():
    """A port that nobody listens to: refused at once, as without a network."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_what_is_here_is_taken(tmp_path, monkeypatch):
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").touch()
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name") == Path("owner/name")
    assert resolve(str(tmp_path)) == tmp_path
    for source in ("absent", "/absent/x", "a/b/c.pth", "a/b:", "", "../x", "a/b@"):
        expected = f"^--input {re.escape(source)}: no such file or folder"
        if not source:
            continue  # the current folder
        with pytest.raises(InputError, match=expected):
            resolve(source, "--input")


def test_without_a_network_the_cache_is_the_hub(tmp_path, nowhere):
    repo = tmp_path / "hub" / "models--owner--name"
    snapshot = repo / "snapshots" / COMMIT
    (snapshot / "deep").mkdir(parents=True)
    (snapshot / "deep" / "w[1].pth").write_bytes(b"x")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    answers = ask(
        tmp_path,
        nowhere,
        "owner/name",
        "owner/name:deep/w[1].pth",
        f"owner/name@{COMMIT}:deep/w[1].pth",
        "owner/name:absent.pth",
        "owner/other",
        "owner/name@v2",
    )
    found, reasons = [a for a, _ in answers[:3]], [a for a, _ in answers[3:]]
    file = str(snapshot / "deep" / "w[1].pth")
    assert found == [str(snapshot), file, file]
    assert "has no file 'absent.pth'" in reasons[0]
    for reason, source in zip(
        reasons[1:], ("owner/other", "owner/name@v2"), strict=True
    ):
        start = f"later: --checkpoint {source}: not a local file and the hub cannot be"
        assert reason.startswith(start) and reason.endswith(
            "download it elsewhere and give its path, or set HF_HOME to a cache that "
            "holds it"
        )
    assert max(seconds for _, seconds in answers) < 10


def test_a_silent_hub_is_given_up(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        answers = ask(tmp_path, endpoint, "owner/name:x.pth", seconds=0.5)
    assert answers[0][0].startswith("later: ")
    assert "the hub cannot be reached" in answers[0][0]
    assert time.monotonic() - started < 30


class _Hub(http.server.BaseHTTPRequestHandler):
    """Answers every question with the number in the asked name."""

    def do_GET(self):
        self.send_response(int(re.search(r"status(\d+)", self.path)[1]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_busy_hub_may_pass_and_a_refusal_does_not(tmp_path, offline):
    """After an InputError launch.pod would start nothing again."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        busy, refused = ("503", "500", "429"), ("404", "401", "403")
        names = [f"owner/status{number}" for number in (*busy, *refused)]
        endpoint = f"http://127.0.0.1:{hub.server_port}"
        given = {} if offline == "0" else {"HF_HUB_OFFLINE": "1"}
        answers = ask(tmp_path, endpoint, *names, **given)
        hub.shutdown()
    kinds = [answer.partition(":")[0] for answer, _ in answers]
    passing = ["later"] * 3 if offline == "0" else ["error"] * 3
    assert kinds == [*passing, *["error"] * 3]
