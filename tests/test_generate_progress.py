"""What a user sees of a chunk that takes minutes."""

import time

from launch import generate_progress


def test_a_clock_runs_while_a_chunk_is_sampled(monkeypatch, capsys):
    """Nothing else is heard of a chunk before its end."""
    monkeypatch.setattr(generate_progress, "_EVERY", 0.02)
    monkeypatch.setattr(generate_progress, "_EVERY_IN_LOGS", 0.02)

    def pieces():
        for number in range(3):
            time.sleep(0.2 if number else 0)  # the first is there: a killed run's
            yield number

    with generate_progress.Progress(3, 1, None) as progress:
        assert list(progress.watched(pieces())) == [0, 1, 2]
    assert 0.15 < progress.took < 5
    lines = capsys.readouterr().err.split("\r")
    at_work = [x for x in lines if "chunk 2 0:00" in x and "last took" not in x]
    assert at_work and all("1/3" in line for line in at_work)
    assert any("chunk 3 0:00, the last took 0:00" in line for line in lines)
    assert "3/3" in lines[-1] and "chunk 3" not in lines[-1]
