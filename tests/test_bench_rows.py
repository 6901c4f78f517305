"""What launch.bench writes, and how an old file is held against a new one."""

import json
import subprocess
import sys

import pytest

from launch import bench_rounds, bench_rows
from launch.bench_rows import LeftOut, Reference, Row
from tavr_jax.errors import InputError

ROW = Row(
    "step",
    [10.0, 40.0, 12.0],
    flops=3e9,
    first=1.5,
    load=2.0,
    reference=Reference("PyTorch", [20.0, 10.0, 12.0], 1e-6, 1e-4),
    peak=[1e12, 1e11, 1e12],
)


def told(*rows):
    return json.loads(json.dumps(bench_rows.report(rows)))


def changed(cost=1.0, peak=1.0, name="step"):
    costs, peaks = [cost * c for c in ROW.cost], [peak * p for p in ROW.peak]
    return told(ROW._replace(name=name, cost=costs, peak=peaks))


def test_ratios_are_of_the_same_round():
    assert bench_rows.ratios(ROW) == [0.5, 4.0, 1.0]
    assert bench_rows.shares(ROW) == pytest.approx([0.3, 0.75, 0.25])
    text = "\n".join(bench_rows.lines(ROW))
    assert "12 (10 to 40) ms, 3 GFLOP, 0.25 TFLOP/s" in text
    assert (
        "1.00 (0.50 to 4.00) of the time of PyTorch; outputs differ by 1.0e-06" in text
    )
    assert "0.30 (0.25 to 0.75) of the matmul peak" in text
    assert "first call 1.5 s, load 2.0" in text
    assert bench_rows.lines(Row("memory", [5.0], "MB")) == [
        "memory",
        "    5 (5 to 5) MB",
    ]


def test_a_file_is_read_back_and_another_is_refused(tmp_path):
    path = tmp_path / "new.json"
    path.write_text(json.dumps(bench_rows.report([ROW, LeftOut("block", "too large")])))
    found = bench_rows.read(path)
    assert Row(**found["rows"][0])._replace(reference=ROW.reference) == ROW
    assert Reference(**found["rows"][0]["reference"]) == ROW.reference
    assert found["left_out"] == [{"name": "block", "why": "too large"}]
    assert {"cpu", "cores", "device"} < set(found["machine"])
    assert {"python", "jax"} < set(found["versions"])
    for damage in ("{", "[]", "{}", '{"schema": 0}', '{"schema": 1, "rows": [{}]}'):
        path.write_text(damage)
        with pytest.raises(InputError, match="not a file of launch") as caught:
            bench_rows.read(path)
        assert "\n" not in str(caught.value)


def test_slower_is_judged_against_the_matmul_of_the_same_run():
    old = told(ROW)
    for cost, peak, slower in (
        (1.0, 1.0, False),
        (1.2, 1.0, True),
        (1.2, 0.8, False),  # the machine was slower too
        (1.0, 1.2, True),  # it was faster, and we were not
        (0.5, 1.0, False),
    ):
        table, found = bench_rows.compare(old, changed(cost, peak), 1.1)
        assert found == slower, (cost, peak)
        assert f"{cost:10.2f}  {cost * peak:6.2f}  step" in table
        assert ("SLOWER" in table) == slower
    assert not bench_rows.compare(old, changed(1.2), 1.3)[1]


def test_without_a_peak_costs_are_compared_and_strangers_are_not_judged():
    old, new = told(ROW._replace(peak=None)), changed(1.2, 0.5)
    assert bench_rows.compare(old, new, 1.1)[1]
    new["rows"][0]["name"], new["machine"]["device"] = "other", "abacus"
    table, slower = bench_rows.compare(old, new, 1.1)
    assert not slower and "new     other" in table and "gone    step" in table
    assert "not the same device" in table and not bench_rows.common(old, new)


def test_what_no_longer_fits_is_a_loss():
    old = told(ROW._replace(name="step mini"))
    new = told(ROW._replace(name="block mini"), LeftOut("step", "out of memory"))
    table, slower = bench_rows.compare(old, new, 1.1)
    assert slower and "LOST    step: out of memory" in table
    assert bench_rows.common(old, new) == {"step"}
    new = told(LeftOut("steps", "out of memory"))
    assert not bench_rows.compare(old, new, 1.1)[1]


def test_a_file_names_nobody(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setattr(sys, "argv", ["/home/somebody/b.py", "--json=/home/somebody/x"])
    assert told(ROW)["command"] == ["~/b.py", "--json=~/x"]


def test_rounds_alternate_and_the_first_one_is_not_counted():
    order, now = [], [0.0]

    def call(name, seconds):
        def made():
            order.append(name)
            now[0] += seconds[min(order.count(name), len(seconds)) - 1]

        return made

    calls = {"a": call("a", [9, 1, 2, 3]), "b": call("b", [9, 5])}
    found = bench_rounds.in_turn(calls, 3, clock=lambda: now[0])
    assert order == ["a", "b"] * 4
    assert found == {"a": [1, 2, 3], "b": [5, 5, 5]}


def test_the_command_writes_compares_and_says_so_by_its_exit_code(tmp_path):
    path = tmp_path / "a.json"
    command = [sys.executable, "-m", "launch.bench", "matmul", "--peak_size=64"]
    command += ["--rounds=1", "--config=configs/same_scene.py:tiny", "--notorch"]

    def run(*more):
        return subprocess.run([*command, *more], capture_output=True, text=True)

    done = run(f"--json={path}")
    assert done.returncode == 0 and "matmul 64, float32" in done.stdout, done.stderr
    assert [row["flops"] for row in bench_rows.read(path)["rows"]] == [2 * 64**3]
    assert run(f"--compare={path}", "--slack=1e9").returncode == 0
    slower = run(f"--compare={path}", "--slack=0")
    assert slower.returncode == 1 and "SLOWER than 0" in slower.stdout
    command[command.index("--peak_size=64")] = "--peak_size=32"
    other = run(f"--compare={path}")
    assert other.returncode == 2 and "none of these rows" in other.stderr
    nowhere = run(f"--json={tmp_path}/none/a.json")
    assert nowhere.returncode == 2 and "no such folder" in nowhere.stderr
