"""Laws of what becomes of a caption before the transformer reads it."""

import hashlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece

from configs.base import get_config
from launch.parity_oracle import Oracle
from launch.parity_text import replay_text
from tavr_jax.encoders.captions import (
    GESTURES,
    TextEncoder,
    Tokenizer,
    clean,
    without_gestures,
)
from tavr_jax.encoders.umt5 import Umt5
from tavr_jax.encoders.weights_umt5 import load_umt5
from tavr_jax.errors import InputError

GOLDEN = Path(__file__).parent / "golden" / "text"
LENGTH = 24
SENTENCES = (
    "a man in a blue suit talks to the camera",
    "she speaks slowly and looks away from the lens",
    "two people sit in a bright room and talk",
)


def trained(folder: Path, size: int, **settings) -> Path:
    """A sentencepiece model with umT5's special pieces."""
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1} | settings
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 10),
        model_prefix=str(folder / "spiece"),
        vocab_size=size,
        hard_vocab_limit=False,
        minloglevel=2,
        **ids,
    )
    return folder / "spiece.model"


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("pieces"), 38)


@pytest.fixture(scope="module")
def tokenizer(pieces) -> Tokenizer:
    return Tokenizer(pieces)


@pytest.fixture(scope="module")
def network() -> Umt5:
    return load_umt5(GOLDEN / "hf.safetensors", "float32")


def test_recorded_captions_are_reproduced(shared):
    oracle = Oracle.open(shared / "oracles/tavr_seed0/text.json")
    checks = replay_text(oracle)
    assert {c.name for c in checks} | oracle.inputs == set(oracle.names)
    for check in checks:
        found, expected = check.compute(), oracle.expected(check.name)
        assert found.tolist() == expected.tolist(), check.name


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("  a\t\ttab,\r\na\u3000wide\u00a0blank ", "a tab, a wide blank"),
        ("<b> &amp;amp; &#39;", "<b> & '"),
        ("donâ€™t", "don't"),
        ("\u201cwords\u201d", '"words"'),
        ("&nbsp;", ""),
        (get_config().text.negative, get_config().text.negative[:-1]),
        (f"{GESTURES} A man. {GESTURES}", "A man."),
        (GESTURES.lower(), GESTURES.lower()),
        ("", ""),
    ],
)
def test_captions_are_cleaned(caption, cleaned):
    assert clean(without_gestures(caption)) == cleaned
    assert clean(cleaned) == cleaned


def test_the_default_negative_prompt_is_the_released_one():
    prompt = get_config().text.negative  # the release's ends with a blank
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    assert digest.startswith("f480d9de9b0a2b74")


def test_ids_are_pieces_and_an_end_that_is_never_cut_off(tokenizer, pieces):
    model = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    caption = " ".join(SENTENCES)
    everything = model.encode(caption)
    assert len(everything) > 60
    for length in (1, 2, 24, 512):
        expected = [*everything[: length - 1], 1]
        assert tokenizer(caption, length) == expected
    assert tokenizer("", LENGTH) == [1]


def test_what_the_vocabulary_has_not_is_unknown(tokenizer):
    *pieces, end = tokenizer("a 你 man", LENGTH)
    assert pieces.count(2) == 1 and end == 1
    assert 1 not in tokenizer("a man </s> talks", LENGTH)[:-1]


def test_a_folder_stands_for_its_model(tokenizer, pieces):
    assert Tokenizer(pieces.parent)(SENTENCES[0], 99) == tokenizer(SENTENCES[0], 99)


def test_a_bad_model_is_named(tmp_path):
    path = tmp_path / "spiece.model"
    for place in (path, tmp_path):
        with pytest.raises(InputError, match=r"spiece\.model: no such file; give"):
            Tokenizer(place)
    for content in (b"", b"not a model"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"spiece\.model: "):
            Tokenizer(path)
    with pytest.raises(InputError, match="no end token"):
        Tokenizer(trained(tmp_path, 38, eos_id=-1))


def test_rows_are_those_of_the_tokens_alone_and_zero_beyond(tokenizer, network):
    encode = TextEncoder(network, tokenizer, LENGTH)
    for caption in ("", "a man", SENTENCES[1] * 3):
        ids = jnp.array([tokenizer(caption, LENGTH)])
        alone = np.asarray(network(ids, jnp.ones(ids.shape, bool)))[0]
        rows = encode(caption)
        assert rows.shape == (LENGTH, 16) and rows.dtype == np.float32
        count = ids.shape[1]
        np.testing.assert_allclose(rows[:count], alone, rtol=0, atol=1e-5)
        assert not rows[count:].any() and np.abs(alone).min(1).max() > 0
    assert np.count_nonzero(encode("").any(1)) == 1


def test_a_caption_is_cleaned_before_it_is_read(tokenizer, network):
    encode = TextEncoder(network, tokenizer, LENGTH)
    dirty = f"  a &amp;amp; man{GESTURES}\n"
    np.testing.assert_array_equal(encode(dirty), encode("a & man"))


def test_more_pieces_than_embeddings_are_an_error(tmp_path, network):
    large = Tokenizer(trained(tmp_path, 320, byte_fallback=True))
    assert len(large) > network.config.vocabulary
    with pytest.raises(InputError, match=r"spiece\.model: .*not of the same umT5"):
        TextEncoder(network, large, LENGTH)
