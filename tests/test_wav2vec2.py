import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tavr_jax.encoders import weights_wav2vec2
from tavr_jax.encoders.published import save
from tavr_jax.encoders.tensors import open_tensors, write_tensors
from tavr_jax.encoders.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from tavr_jax.encoders.wav2vec2_wave import Listener, normalised, pieces
from tavr_jax.encoders.weights_wav2vec2 import load_wav2vec2, published_wav2vec2
from tavr_jax.errors import InputError

GOLDEN = Path(__file__).parent / "golden/speech"
KINDS = ("group", "layer")

hear = nnx.jit(lambda network, wave, samples=None: network(wave, samples))


def relative(ours, theirs) -> float:
    difference = np.asarray(ours, np.float64) - np.asarray(theirs)
    return np.linalg.norm(difference) / np.linalg.norm(theirs)


def load(folder: Path, file: str) -> Wav2Vec2:
    config = Wav2Vec2Config.from_json(folder / "config.json")
    empty = nnx.eval_shape(lambda: Wav2Vec2(config, rngs=nnx.Rngs(0)))
    return load_wav2vec2(folder / file, empty)


@pytest.fixture(scope="module", params=KINDS)
def network(request) -> Wav2Vec2:
    return published_wav2vec2(GOLDEN / request.param)


@pytest.fixture(scope="module")
def stable() -> Wav2Vec2:
    return published_wav2vec2(GOLDEN / "layer")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_network_is_reproduced(kind):
    data = np.load(GOLDEN / kind / "cases.npz")
    heard = hear(published_wav2vec2(GOLDEN / kind), data["wave"])
    for name in ("features", "hidden", "last"):
        assert relative(getattr(heard, name), data[name]) < 5e-6, name


@pytest.mark.parametrize("kind", ["wav2vec2", "wav2vec2_stable"])
@pytest.mark.parametrize("file", ["hf.safetensors", "pytorch_model.bin"])
def test_every_published_layout_is_read(shared, kind, file):
    folder = shared / "oracles/wan_seed0" / kind
    data = np.load(folder / "cases.npz")
    heard = hear(load(folder, file), data["a_input_values"])
    assert relative(heard.features, data["a_extract_features"]) < 5e-6
    assert relative(heard.hidden, data["a_hidden_states"]) < 5e-6
    assert relative(heard.last, data["a_last"]) < 5e-6


def test_padding_changes_nothing_before_it(network):
    lengths = (400, 1777)
    padded = noise(len(lengths), 3600)
    together = hear(network, padded, np.array(lengths))
    for row, length in enumerate(lengths):
        alone = hear(network, padded[row : row + 1, :length])
        steps = network.config.steps(length)
        assert alone.last.shape[1] == steps
        np.testing.assert_allclose(
            together.hidden[:, row, :steps], alone.hidden[:, 0], atol=3e-5
        )
        np.testing.assert_allclose(together.last[row, :steps], alone.last[0], atol=3e-5)


def test_a_wave_delayed_by_a_step_gives_features_delayed_by_one(stable):
    wave = noise(3600 + 3 * 320)
    features = hear(stable, np.stack([wave[960:], wave[:3600]])).features
    np.testing.assert_allclose(features[1, 3:], features[0, :-3], atol=1e-5)


def test_one_step_hears_400_samples(stable):
    config = stable.config
    assert (config.stride, config.reach) == (320, 400)
    for samples, steps in {399: 0, 400: 1, 16000: 49, 51840: 161, 80000: 249}.items():
        assert config.steps(samples) == steps
    wave = noise(3600)
    for inside, changed in ((slice(640, 1040), False), (slice(641, 1039), True)):
        other = noise(3600, seed=1)
        other[inside] = wave[inside]
        features = hear(stable, np.stack([wave, other])).features
        assert bool((features[0, 2] != features[1, 2]).any()) == changed


def test_the_positional_convolution_is_a_grouped_one(stable):
    positions, x = stable.positions, noise(2, 9, 24)
    taps = positions.direction.shape[0]
    v = np.asarray(positions.direction[...])
    kernel = (
        v
        * (np.asarray(positions.gain[...]) / np.sqrt((v**2).sum((1, 2))))[:, None, None]
    )
    expected = jax.lax.conv_general_dilated(
        x,
        kernel,
        (1,),
        [(taps // 2, taps // 2)],
        dimension_numbers=("NHC", "HIO", "NHC"),
        feature_group_count=positions.groups,
    )[:, :9] + np.asarray(positions.bias[...]).reshape(1, 1, -1)
    expected = jax.nn.gelu(expected, approximate=False)
    np.testing.assert_allclose(positions(jnp.asarray(x)), expected, atol=1e-5)


def test_the_processor_forgets_level_and_offset():
    wave = noise(3000)
    unit = normalised(wave)
    assert abs(unit.mean()) < 1e-6 and abs(unit.std() - 1) < 1e-6
    np.testing.assert_allclose(normalised(300 * wave + 100), unit, atol=2e-4)
    np.testing.assert_array_equal(normalised(np.zeros(50)), np.zeros(50))
    rows = normalised(np.stack([wave, wave]), np.array([3000, 1200]))
    np.testing.assert_array_equal(rows[0], unit)
    np.testing.assert_array_equal(rows[1, :1200], normalised(wave[:1200]))
    assert not rows[1, 1200:].any()


def test_a_listener_hears_what_the_network_hears(network):
    listener = Listener(network)
    for samples in (400, 1777):
        wave = noise(samples)
        heard = hear(network, normalised(wave)[None])
        states = listener(wave, (0, 1, 2, -1))
        np.testing.assert_allclose(states[:2], heard.hidden[:2, 0], atol=3e-5)
        for last in states[2:]:
            np.testing.assert_allclose(last, heard.last[0], atol=3e-5)
    # these lengths share one compilation
    assert listener._run._cache_size() == 1
    assert listener(noise(399), (0, 1)).shape == (2, 0, network.config.hidden_size)
    assert np.isfinite(listener(np.zeros(900), (2,))).all()
    with pytest.raises(InputError, match="not finite"):
        listener(np.full(900, np.nan), (0,))
    with pytest.raises(InputError, match="hidden state 24"):
        listener(noise(900), (0, 24))


@pytest.mark.parametrize("steps", [1, 49, 50, 51, 60, 90, 91, 130, 333])
def test_pieces_cover_every_step_once_with_context(steps):
    size, overlap = 50, 20
    plan = pieces(steps, size, overlap)
    covered = [step for _, _, first, last in plan for step in range(first, last)]
    assert covered == list(range(steps))
    assert (len(plan) == 1) == (steps <= size)
    assert all(stop - start == min(size, steps) for start, stop, _, _ in plan)
    for start, stop, first, last in plan:
        assert start == 0 or first - start >= overlap // 2
        assert stop == steps or stop - last >= overlap // 2


def test_long_speech_is_heard_in_overlapping_pieces(stable):
    wave, limit, context = noise(70 * 320), 40 * 320, 12 * 320
    whole, apart = Listener(stable), Listener(stable, limit, context)
    one, several = whole(wave, (0, 1, 2)), apart(wave, (0, 1, 2))
    # attention reaches over the whole wave: its share beyond a piece is lost
    assert several.shape == one.shape and relative(several, one) < 0.1
    # what reaches no further than the context is exact
    local = nnx.clone(stable)
    local.layers.o.kernel[...] *= 0
    whole._weights = apart._weights = nnx.state(local)
    np.testing.assert_allclose(
        apart(wave, (0, 1, 2)), whole(wave, (0, 1, 2)), atol=3e-5
    )


@pytest.mark.parametrize("layout", [weights_wav2vec2.OLD, weights_wav2vec2.NEW])
@pytest.mark.parametrize("prefix", ["", "wav2vec2."])
def test_weights_survive_the_way_out_and_back(tmp_path, network, layout, prefix):
    path = tmp_path / "model.safetensors"
    save(path, network, weights_wav2vec2.entries(network, layout), {})
    found = {prefix + name: tensor for name, tensor in open_tensors(path).items()}
    extra = {"lm_head.weight": np.zeros((4, 24), np.float32)}
    write_tensors(path, found | extra, {})
    empty = nnx.eval_shape(lambda: Wav2Vec2(network.config, rngs=nnx.Rngs(0)))
    again = load_wav2vec2(path, empty)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(network))
    write_tensors(path, found | {"decoder.weight": np.zeros(3, np.float32)}, {})
    with pytest.raises(InputError, match=r"unknown tensor 'decoder.weight'"):
        load_wav2vec2(path, empty)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("hidden_act", "mish", "expected one of gelu"),
        ("feat_extract_norm", "batch", "expected one of group, layer"),
        ("model_type", "hubert", "is not 'wav2vec2'"),
        ("conv_kernel", [10, 3], "one number for each"),
        ("num_attention_heads", 5, "divisor of 24"),
        ("hidden_size", "24", "is no int"),
        ("add_adapter", True, "adapters are not built"),
        ("layer_norm_eps", None, "missing"),
    ],
)
def test_a_config_of_another_network_is_refused(tmp_path, field, value, said):
    found = json.loads((GOLDEN / "layer/config.json").read_text())
    found = {k: v for k, v in (found | {field: value}).items() if v is not None}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(found))
    with pytest.raises(InputError) as error:
        Wav2Vec2Config.from_json(path)
    assert field in str(error.value) and said in str(error.value)
    assert "\n" not in str(error.value)


def test_sizes_are_the_published_ones():
    """base-960h has 94 371 712 parameters; ours lacks its masked_spec_embed."""
    base = dataclasses.replace(
        Wav2Vec2Config.from_json(GOLDEN / "group/config.json"),
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        conv_dim=(512,) * 7,
        num_conv_pos_embeddings=128,
        num_conv_pos_embedding_groups=16,
    )
    made = nnx.eval_shape(lambda: Wav2Vec2(base, rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(made, nnx.Param)))
    assert count == 94_371_712 - 768
