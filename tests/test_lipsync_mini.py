"""The shipped lip-sync network on drawn people that it has not been trained on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.base import get_config
from configs.models import apply
from data_pipelines import people, synthetic
from launch import build
from tavr_jax.encoders import lipsync
from tavr_jax.encoders.speech import SpeechConfig, log_mel
from tavr_jax.evaluation import metrics

CONFIG = apply(get_config(), "mini")
SHIFTS = (-9, -2, 0, 5)
UNSEEN = range(1000, 1004)
SECONDS, END = 2.8, 10  # END frames at both ends are there for the shifts only


@pytest.fixture(scope="module")
def embedded() -> tuple[np.ndarray, np.ndarray]:
    """Lips (clips, windows, Z) of the middle of every clip, speech of all of it."""
    graph, weights = nnx.split(build.sync_net(CONFIG))
    speech = SpeechConfig(**CONFIG.speech)
    crops, rows = [], []
    for index in UNSEEN:
        clip = synthetic.clip(0, index, 0, SECONDS, CONFIG.prepare.portrait[0])
        count = len(clip.frames)
        # a box that stays: one that follows the chin would tell of the mouth by itself
        boxes = np.repeat(np.median(clip.face_boxes, axis=0)[None], count, axis=0)
        cut = people.crop_faces(clip.frames, boxes, CONFIG.lipsync.size, count)
        crops.append(cut[END : count - END])
        rows.append(log_mel(clip.wave, count, speech))

    @jax.jit
    def embed(weights, faces, mel):
        net = nnx.merge(graph, weights)
        return net.embed_faces(faces), net.embed_speech(mel)

    faces = np.stack(crops).astype(np.float32) / 127.5 - 1.0
    return jax.tree.map(np.asarray, embed(weights, faces, np.stack(rows)))


def scores(
    lips: np.ndarray, speech: np.ndarray, ahead: int = 0
) -> list[metrics.LipSync]:
    """Of every clip, with speech that runs `ahead` frames ahead of the lips."""
    heard = speech[:, END + ahead :][:, : lips.shape[1]]
    reach = CONFIG.lipsync.max_shift
    pairs = zip(lips, heard, strict=True)
    return [metrics.lip_sync(*pair, reach, zero_ends=False) for pair in pairs]


@pytest.mark.parametrize("ahead", SHIFTS)
def test_it_finds_by_how_much_speech_was_shifted(embedded, ahead):
    found = [score.offset for score in scores(*embedded, ahead)]
    assert np.abs(np.subtract(found, ahead)).max() <= 1, found


def test_it_is_surer_of_a_persons_own_speech_than_of_anothers(embedded):
    lips, speech = embedded
    own, others = scores(lips, speech), scores(lips, np.roll(speech, 1, axis=0))
    assert min(s.confidence for s in own) > 1.5 * max(s.confidence for s in others)
    assert max(s.distance for s in own) < min(s.distance for s in others)


def test_the_mouth_is_inside_what_it_looks_at():
    size = CONFIG.lipsync.size
    rows, columns = np.mgrid[:size, :size]
    marked = np.stack([rows, columns, rows], axis=-1)[None, None].astype(np.float32)
    seen = np.asarray(lipsync.mouth(jnp.asarray(marked)))[0, 0]
    assert seen.shape[:2] == (2 * size // 3, 2 * size // 3)
    assert (seen[0, 0, 0], seen[-1, -1, 0]) == (size // 3, size - 1)
    assert (seen[0, 0, 1], seen[-1, -1, 1]) == (size // 6, size - size // 6 - 1)
