import subprocess
import sys

import numpy as np
import pytest

from configs.base import get_config
from configs.models import apply
from tavr_jax.encoders import text


@pytest.fixture(scope="module")
def config() -> text.TextConfig:
    return text.TextConfig(**apply(get_config(), "mini").text)


def test_rows_are_unit_words_then_the_end_then_zeros(config):
    rows = text.embed("A woman, talking.", config)
    norms = np.linalg.norm(rows, axis=-1)
    np.testing.assert_allclose(norms, [1] * 4 + [0] * (config.length - 4), atol=1e-6)
    # the end row is the empty caption's only row
    empty = text.embed("", config)
    np.testing.assert_array_equal(empty[0], rows[3])
    assert not empty[1:].any()


def test_case_and_punctuation_do_not_matter_but_words_and_order_do(config):
    same = [text.embed(c, config) for c in ("The man's hat!", "  the MAN'S   hat")]
    np.testing.assert_array_equal(*same)
    a, b = (text.embed(c, config) for c in ("blue red", "red blue"))
    np.testing.assert_array_equal(a[:2], b[1::-1])
    assert abs(a[0] @ a[1]) < 0.6


def test_a_caption_too_long_keeps_its_end_token(config):
    rows = text.embed("word " * 100, config)
    np.testing.assert_array_equal(rows[-1], text.embed("", config)[0])


def test_another_process_gives_the_same_rows(config):
    code = (
        "from tavr_jax.encoders.text import *;"
        f"print(embed('zoë speaks', {config!r}).tobytes().hex())"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONHASHSEED": "7", "PYTHONUTF8": "1", "PYTHONPATH": "."},
    ).stdout.strip()
    assert told == text.embed("Zoë speaks", config).tobytes().hex()
