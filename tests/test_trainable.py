import re

import jax
import numpy as np
import pytest
from flax import nnx

from configs import base, same_scene
from tavr_jax.encoders import weights_wan
from tavr_jax.errors import InputError
from tavr_jax.models.transformer import Transformer, TransformerConfig
from tavr_jax.training.lora import LoraConfig, graft
from tavr_jax.training.optimizer import OptimizerConfig, create_state
from tavr_jax.training.trainable import chosen

CONFIG = TransformerConfig(**same_scene.get_config("tiny").model)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return nnx.eval_shape(lambda: Transformer(CONFIG, rngs=nnx.Rngs(0)))


def names(state) -> set[str]:
    return {"/".join(map(str, key)) for key, _ in nnx.to_flat_state(state)}


def trained(trainable: str, model) -> set[str]:
    _, taken, rest = nnx.split(model, chosen(trainable, model), nnx.Param)
    every = names(nnx.state(model, nnx.Param))
    assert names(taken) | names(rest) == every and not names(taken) & names(rest)
    return names(taken)


def test_all_is_everything(model):
    assert trained("all", model) == names(nnx.state(model, nnx.Param))


def test_new_is_what_wan_has_not_and_the_patch_embedding(model):
    wans = {"/".join(map(str, e.ours)) for e in weights_wan.entries(model)}
    every = names(nnx.state(model, nnx.Param))
    taken = trained("new", model)
    assert taken == (every - wans) | {"patch_embedding/kernel"}
    assert {"null_audio", "blocks/norm4/scale", "blocks/audio_attn/o/bias"} <= taken


def test_attention_is_the_inside_of_three_attentions(model):
    taken = trained("attention", model)
    assert {name.split("/")[1] for name in taken} == {
        "self_attn",
        "cross_attn",
        "audio_attn",
    }
    parts = {name.split("/")[2] for name in taken}
    adapters = {"adapter_q", "adapter_k", "adapter_v"}
    assert parts == {"q", "k", "v", "o", "norm_q", "norm_k", *adapters}


def test_lora_is_the_additions_alone(model):
    config = LoraConfig(**{**base.lora(), "rank": 4})
    taken = trained("lora", graft(model, config, nnx.Rngs(0)))
    assert len(taken) == 28 and all(re.search("/lora_[ab]$", name) for name in taken)
    with pytest.raises(InputError, match="'lora' matches no parameter"):
        chosen("lora", model)


def test_patterns_are_whole_names_and_add_up(model):
    taken = trained("blocks/self_attn/.*/kernel,head/.*", model)
    heads = {f"blocks/self_attn/{part}/kernel" for part in "qkvo"}
    assert taken == heads | {"head/kernel", "head/bias"}


@pytest.mark.parametrize("pattern", ["blocks/self_attn", "head/.*,nothing", "al", ""])
def test_a_pattern_without_a_parameter_is_named_with_some_that_exist(model, pattern):
    wrong = pattern.split(",")[-1]
    with pytest.raises(InputError, match=rf"trainable: '{wrong}' matches no") as told:
        chosen(pattern, model)
    shown = str(told.value).split("such as ")[1].split(", ")
    assert len(shown) > 2 and set(shown) <= names(nnx.state(model, nnx.Param))
    with pytest.raises(InputError, match=r"'\(': no regular expression"):
        chosen("(", model)


def test_what_is_frozen_has_no_moments_and_no_average(model):
    _, taken, _ = nnx.split(model, chosen("head/.*", model), nnx.Param)
    state = jax.eval_shape(
        lambda params: create_state(params, OptimizerConfig(**base.optimizer())), taken
    )
    size = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(taken))
    held = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(state))
    assert 4 * size <= held < 4 * size + 10  # weights, average, two moments, counters
