"""What a run shows of itself: samples with sound, and numbers of held-out pairs."""

from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_dataset

from data_pipelines import media
from launch import previews, start
from tavr_jax.diffusion.guidance import Network
from tavr_jax.parallel.mesh import MeshConfig, make_mesh
from tavr_jax.parallel.sharding import abstract
from tavr_jax.training.report import Report


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset.write(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config_of(dataset):
    def make(stage, **fields):
        config = import_module(f"configs.{stage}").get_config("tiny")
        config.data.path, config.data.batch_size = str(dataset), 4
        config.train.evaluate_every = config.train.sample_every = 1
        config.train.evaluate_batches = 2
        config.update_from_flattened_dict(fields)
        return config

    return make


def network(params):
    """Linear in the latents, with as much of each condition as `params` say."""

    def velocity(x, timestep, conditions, cache):
        told = (
            params["audio"] * conditions.has_audio
            + params["reference"] * conditions.reference_tokens.mean((1, 2, 3))
            + params["text"] * conditions.text.std((1, 2))
        )
        shift = told[:, None, None, None, None] + params["bias"] * timestep.mean()
        return x * params["gain"] + shift

    return Network(lambda conditions: None, velocity)


PARAMS = {"audio": 0.0, "reference": 0.0, "text": 0.0, "bias": 0.0, "gain": 0.5}


class ToyStart:
    """As launch.start.Start, of the network above."""

    def __init__(self, devices):
        mesh = make_mesh(MeshConfig(1, -1, 1, 1), jax.devices()[:devices])
        shapes = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in PARAMS}
        self.abstract = abstract(mesh, shapes)

    def network(self):
        return network

    graph = None

    def whole(self, params):
        return params

    def params(self, **values):
        places = jax.tree.map(lambda x: x.sharding, self.abstract)
        return jax.device_put(PARAMS | values, places)


@pytest.fixture
def losses_of(tmp_path):
    def losses(config, *variants, devices=1):
        """Held-out loss under each variant of PARAMS."""
        begun = ToyStart(devices)
        lines = Report(tmp_path, config.stage, 1, None)
        evaluate = previews.held_out(config, begun, lines, None)
        return [evaluate(begun.params(**v), 1)["loss"] for v in variants]

    return losses


def test_held_out_loss_is_one_number_whatever_computes_it(config_of, losses_of):
    config = config_of("cross_scene")
    known, other, again = losses_of(config, {}, {"gain": 0.4}, {})
    assert known == again != other
    np.testing.assert_allclose(losses_of(config, {}, devices=4), known, rtol=1e-6)
    # x = (1 - s) x0 + s e and v = e - x0, all of variance 1, s shifted by 5
    s = 5 * (u := np.linspace(0, 1, 1001)) / (1 + 4 * u)
    expected = ((0.5 * s - 1) ** 2 + (0.5 * (1 - s) + 1) ** 2).mean()
    assert abs(known - expected) < 0.3


def test_held_out_loss_does_not_depend_on_the_recipe_of_training(config_of, losses_of):
    recipe = {
        "flow.drop_audio": 0.9,
        "flow.drop_reference": 0.9,
        "flow.motion_noise": 0.9,
        "flow.density": "logit_normal",
        "flow.lips_weight": 9.0,
        "data.continuation": 0.0,
    }
    configs = config_of("same_scene"), config_of("same_scene", **recipe)
    one, other = (losses_of(c, {"audio": 0.3, "reference": 0.2}) for c in configs)
    assert one == other


@pytest.mark.parametrize(
    ("stage", "unseen"),
    [
        ("text_to_video", {"audio", "reference"}),
        ("audio_to_video", {"reference"}),
        ("same_scene", set()),
    ],
)
def test_what_a_pre_stage_never_sees_is_not_shown_to_it(
    config_of, losses_of, stage, unseen
):
    conditions = ("audio", "reference", "text")
    config = config_of(stage, **{"train.evaluate_batches": 1})
    known, *told = losses_of(config, {}, *({name: 1.0} for name in conditions))
    blind = {n for n, loss in zip(conditions, told, strict=True) if loss == known}
    assert blind == unseen


@pytest.mark.parametrize(
    ("stage", "given"),
    [
        ("text_to_video", {"text"}),
        ("audio_to_video", {"text", "audio"}),
        ("same_scene", {"text", "audio", "reference", "still"}),
    ],
)
def test_a_preview_is_given_what_its_stage_was_trained_with(
    config_of, tmp_path, monkeypatch, stage, given
):
    seen = []

    def sample(weights, noise, conditions, negative):
        seen.append((noise, conditions))
        return noise

    monkeypatch.setattr(previews.generate, "sampler", lambda *_: sample)
    monkeypatch.setattr(previews.build, "codec", lambda config: None)
    monkeypatch.setattr(previews.stages, "check_codec", lambda *_: None)
    frames = np.zeros((17, 32, 32, 3), np.uint8)
    monkeypatch.setattr(previews.generate, "decode", lambda *_: frames)
    config = config_of(stage, **{"flow.drop_text": 0.99})
    lines = Report(tmp_path, stage, 1, None)
    previews.preview(config, ToyStart(1), lines, None)({}, 1)
    noise, c = jax.tree.map(np.asarray, seen[0])
    told = {
        "text": (c.text != c.null_text).any(),
        "audio": c.has_audio.any(),
        "reference": c.reference_tokens.any() and c.reference.any(),
        "still": c.still_tokens.any() and c.still.any(),
    }
    assert {name for name, is_told in told.items() if is_told} == given
    assert (c.has_reference_audio.any() and c.reference.any()) == (
        stage == "same_scene"
    )
    assert not (noise == jax.random.normal(jax.random.key(42), noise.shape)).any()


def test_pairs_are_not_noised_by_the_keys_of_training(
    config_of, losses_of, monkeypatch
):
    seen, make = [], previews._keys
    monkeypatch.setattr(previews, "_keys", lambda *a: seen.append(make(*a)) or seen[-1])
    losses_of(config_of("same_scene"), {})
    seen = jax.random.key_data(jnp.concatenate(seen))
    steps = make(jax.random.key(42), jnp.arange(100))  # of loop.compiled
    used = {tuple(key) for key in np.asarray(jax.random.key_data(steps)).tolist()}
    shown = {tuple(key) for key in np.asarray(seen).tolist()}
    assert len(shown) == 8 and not shown & used
    # nor by those of the last step that can be counted
    purposes = {previews._PAIRS, previews._PREVIEW, previews._JUDGE}
    assert len(purposes) == 3 and min(purposes) > np.iinfo(np.int32).max


def test_nobody_held_out_is_said_and_nothing_is_evaluated(config_of, tmp_path, capsys):
    config = config_of("same_scene", **{"prepare.landscape": (64, 64)})
    lines = Report(tmp_path, "stage", 1, None)
    assert previews.held_out(config, ToyStart(1), lines, None) is None
    assert capsys.readouterr().out.count("no evaluation of held-out pairs (") == 1
    config = config_of("same_scene", **{"train.evaluate_every": 0})
    assert previews.held_out(config, ToyStart(1), lines, None) is None
    assert not capsys.readouterr().out


@pytest.mark.slow
def test_a_policy_is_sampled_and_judged_by_another_network(config_of, tmp_path, capsys):
    """pytest -m slow tests/test_previews.py"""
    config = config_of("policy", **{"train.evaluate_batches": 1})
    found = []
    for devices in (1, 2):
        mesh = make_mesh(MeshConfig(1, -1, 1, 1), jax.devices()[:devices])
        begun = start.begin(config, mesh, tmp_path, False)
        params = begun.params()
        lines = Report(tmp_path, config.stage, 1, None)
        evaluate = previews.held_out(config, begun, lines, None)
        found.append(evaluate(params, 1))
        assert evaluate(params, 2) == found[-1]
    one, two = found
    assert (
        {"identity", "lipsync", "sharpness", "motion", "light"}
        <= one.keys()
        == two.keys()
    )
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=1e-3, err_msg=name)
    said = capsys.readouterr().out
    assert "scored by the face network that rewards" in said  # :tiny has one for both

    lines.start(0, params)
    on_sample = previews.preview(config, begun, lines, None)
    shown = on_sample(params, 7)
    lines.media(7, shown)
    lines.close()
    video = tmp_path / "samples" / "step_7.mp4"
    made = media.probe(video)
    assert made.has_audio and made.fps == 25 and (made.height, made.width) == (32, 64)
    assert media.read_metadata(video)["synthetic"] == "true"
    frames = shown["sample/generated_and_target"].frames
    assert frames.shape == (17, 32, 64, 3)
    luma = [x.mean(-1).ravel() for x in (media.decode_mp4(video.read_bytes()), frames)]
    assert np.corrcoef(*luma)[0, 1] > 0.8  # noise, and halved colours
