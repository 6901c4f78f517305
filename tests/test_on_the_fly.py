"""Clips that training encodes itself give the batches of the encoded dataset."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from drawn import footage, save
from ml_collections import ConfigDict

from configs import codec, cross_scene, face, lipsync, same_scene
from data_pipelines import inspect, loader, records
from data_pipelines.prepare import dataset
from data_pipelines.prepare.pipeline import Runner
from data_pipelines.sources import Source
from launch import build, readers
from tavr_jax.errors import InputError

STAGES = (same_scene, cross_scene, codec, face, lipsync)


def config_for(module, path="") -> ConfigDict:
    config = module.get_config("tiny")
    config.prepare.workers, config.prepare.min_face = 1, 0.25
    config.data.path, config.data.batch_size = str(path), 2
    config.data.threads, config.data.prefetch = 2, 2
    config.lipsync.span = min(config.lipsync.span, config.prepare.min_frames)
    return config


def prepare(source: Path, output: Path, stored: bool) -> bool:
    config = config_for(same_scene)
    config.prepare.encode = stored
    networks = dataset.Networks(None, None, None)
    if stored:
        networks = dataset.Networks(build.codec(config), readers.load(config), None)
    return dataset.prepare(source, output, config, networks, Runner())


@pytest.fixture(scope="module", autouse=True)
def one_codec():
    """All configs here name the same one: it is made once."""
    codec_of_all = build.codec(config_for(same_scene))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "codec", lambda config: codec_of_all)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    save(root / "ann/garden.mp4", footage(33))
    save(root / "ann/kitchen.mp4", footage(17, background=(200, 60, 160)))
    (root / "ann/kitchen.txt").write_text("ann cooks")
    save(root / "bob/office.mp4", footage(33, [(80, 110, 90)], size=(200, 160)))
    return root


@pytest.fixture(scope="module")
def clips_only(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("fly") / "dataset"
    assert prepare(source, output, stored=False)
    return output


@pytest.fixture(scope="module")
def encoded(source, clips_only, tmp_path_factory):
    """The same dataset from the same clips, encoded afterwards."""
    output = tmp_path_factory.mktemp("stored") / "dataset"
    shutil.copytree(clips_only, output)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "cut_videos", None)  # clips are there: only encoded
        assert prepare(source, output, stored=True)
    return output


def every_row(config: ConfigDict) -> np.ndarray:
    return np.arange(config.data.batch_size)


def opened(module, path, **fields):
    config = config_for(module, path)
    config.data.update(fields)
    encoder = readers.make_encoder(config)
    return loader.make_loader(config, rows=every_row(config), encoder=encoder)


def same(ours, theirs):
    """Bit for bit, types too."""

    def leaf(a, b):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)

    jax.tree.map(leaf, ours, theirs)


def hashes(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_prepare_stops_at_the_clips_and_later_only_encodes(
    source, clips_only, encoded, tmp_path, capsys
):
    facts = json.loads((clips_only / records.SUMMARY).read_text())
    assert facts["encoded"] is None and facts["codec"] is None
    have, more = hashes(clips_only), hashes(encoded)
    assert not any(name.startswith(("encoded", "null_text")) for name in have)
    rest = {n: h for n, h in more.items() if not n.startswith(("encoded", "null_text"))}
    assert have.keys() == rest.keys()
    changed = {name for name in have if have[name] != rest[name]}
    assert changed == {records.SUMMARY, "checksums.json"}
    assert not prepare(source, clips_only, stored=False)
    assert "nothing to do" in capsys.readouterr().out
    back = tmp_path / "back"
    shutil.copytree(encoded, back)
    assert prepare(source, back, stored=False)  # what was encoded goes, clips stay
    assert hashes(back) == have


@pytest.mark.parametrize("module", STAGES, ids=lambda m: m.__name__.split(".")[-1])
def test_batches_and_resume_are_those_of_the_encoded_dataset(
    module, clips_only, encoded
):
    made, read = opened(module, clips_only), opened(module, encoded)
    for _ in range(2):
        same(next(made), next(read))
    state = json.loads(json.dumps(made.get_state()))
    assert state == read.get_state()
    resumed = opened(module, clips_only)
    resumed.set_state(state)
    for _ in range(2):
        batch = next(read)
        same(next(made), batch)
        same(next(resumed), batch)
    if module in (same_scene, cross_scene):
        configs = [config_for(module, path) for path in (clips_only, encoded)]
        kind = configs[0].data.pairs
        one, two = (
            loader.sampler(c, "train", kind, readers.make_encoder(c))(0)
            for c in configs
        )
        same(one, two)


def test_a_clip_is_encoded_once_while_it_is_kept(clips_only, monkeypatch):
    config, calls = config_for(same_scene, clips_only), []
    encoder = readers.make_encoder(config)

    def counted(clip):
        calls.append(clip["clip_id"])
        return encoder.encode(clip)

    counting = encoder._replace(encode=counted)
    for kept, made in ((2, [0, 1, 2, 0]), (3, [0, 1, 2])):
        config.data.encoded_cache = kept
        whole = Source(config, "train", encoder=counting)
        calls.clear()
        for index in (0, 0, 1, 0, 1, 2, 2, 1, 0):
            assert whole.encoded(index)["clip_id"] == whole.rows[index].clip_id
        assert calls == [whole.rows[index].clip_id.encode() for index in made]


def test_an_encoder_is_made_only_where_it_is_used(clips_only, encoded):
    assert readers.make_encoder(config_for(same_scene, encoded)) is None
    assert readers.make_encoder(config_for(codec, clips_only)) is None
    config = config_for(same_scene, encoded)
    other = readers.make_encoder(config_for(same_scene, clips_only))
    assert Source(config, "train", encoder=other).encoder is None
    config.data.path = f"{encoded}:1,{clips_only}:1"
    mixed = loader.make_loader(
        config, rows=every_row(config), encoder=readers.make_encoder(config)
    )
    assert {int(c) // 3 for _ in range(4) for c in next(mixed).clip} == {0, 1}


def test_what_cannot_be_encoded_is_said_before_training(clips_only):
    for module in (same_scene, face, lipsync):
        config = config_for(module, clips_only)
        message = rf"{re.escape(str(clips_only))}: is not encoded; .*encode=true"
        with pytest.raises(InputError, match=message):
            loader.make_loader(config, rows=every_row(config))
    with pytest.raises(InputError, match=r"data\.workers=1: .*data\.workers=0"):
        opened(same_scene, clips_only, workers=1)
    with pytest.raises(InputError, match="is not encoded"):
        _ = Source(config, "train").null_text
    config = config_for(same_scene, clips_only)
    config.model.audio_dim = 96
    with pytest.raises(InputError, match=r"model\.audio_dim=96, but networks\.speech"):
        readers.make_encoder(config)


def test_inspect_shows_a_dataset_of_clips_alone(clips_only, encoded):
    assert "encoded: not stored" in inspect.card(clips_only)
    one, two = inspect.Viewer(clips_only), inspect.Viewer(encoded)
    np.testing.assert_array_equal(one.strip(0), two.strip(0))
