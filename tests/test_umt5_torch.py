"""umT5 and its tokenizer against PyTorch, on sizes drawn at random.

Runs where torch and transformers are installed; the product needs neither.
"""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")
transformers = pytest.importorskip("transformers", reason="compares with its umT5")
sentencepiece = pytest.importorskip("sentencepiece")

from tavr_jax.encoders.captions import Tokenizer, clean  # noqa: E402
from tavr_jax.encoders.umt5 import relative_buckets  # noqa: E402
from tavr_jax.encoders.weights_umt5 import load_umt5  # noqa: E402

TEXT = (
    "a man in a blue suit talks to the camera",
    "Deux personnes parlent dans une salle claire.",
    "she looks up, smiles & says: 42!",
)


def random_model(rng: np.random.Generator):
    heads, head = int(rng.integers(1, 5)), int(rng.integers(2, 9))
    config = transformers.UMT5Config(
        vocab_size=int(rng.integers(20, 200)),
        d_model=int(rng.integers(4, 40)),
        d_kv=head,
        d_ff=int(rng.integers(4, 60)),
        num_layers=int(rng.integers(1, 4)),
        num_heads=heads,
        relative_attention_num_buckets=int(rng.choice([16, 32, 64])),
        relative_attention_max_distance=int(rng.choice([64, 128, 200])),
        layer_norm_epsilon=float(rng.choice([1e-6, 1e-3])),
        feed_forward_proj="gated-gelu",
    )
    model = transformers.UMT5EncoderModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scale = 1.0 if "relative" in name else 0.5 * weight.shape[-1] ** -0.5
            weight.add_(scale * torch.randn_like(weight))
    return model


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_those_of_transformers(tmp_path, seed):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    theirs = random_model(rng)
    theirs.save_pretrained(tmp_path)  # with config.json
    length = int(rng.integers(2, 300))
    ids = rng.integers(0, theirs.config.vocab_size, (2, length))
    mask = np.arange(length)[None] < np.array([[length], [1 + length // 3]])
    with torch.no_grad():
        expected = theirs(torch.tensor(ids), torch.tensor(mask.astype(int)))
    found = load_umt5(tmp_path, "float32")(jnp.asarray(ids), jnp.asarray(mask))
    expected = expected.last_hidden_state.numpy()
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < 5e-6, error


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (16, 64), (64, 256)])
def test_buckets_are_those_of_transformers(buckets, distance):
    module = transformers.models.umt5.modeling_umt5.UMT5Attention
    config = transformers.UMT5Config(
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=distance,
    )
    attention = module(config, has_relative_attention_bias=True)
    relative = np.arange(-600, 601)
    expected = attention._relative_position_bucket(torch.tensor(relative)).numpy()
    np.testing.assert_array_equal(
        relative_buckets(relative, buckets, distance), expected
    )


@pytest.mark.parametrize("length", [5, 512])
def test_ids_are_those_of_transformers(tmp_path, length):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    theirs = transformers.T5Tokenizer.from_pretrained(tmp_path)
    ours = Tokenizer(tmp_path)
    for text in (*TEXT, "", "unseen: 你好", "a  b", "ﬁne ＡＢＣ", " ".join(TEXT * 9)):
        caption = clean(text)
        expected = theirs(caption, truncation=True, max_length=length)["input_ids"]
        assert ours(caption, length) == expected, caption
