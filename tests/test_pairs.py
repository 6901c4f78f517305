"""Who is who, where, and who may refer to whom."""

import pickle

import numpy as np
import pytest

from configs import base, same_scene
from data_pipelines import media, people, records
from data_pipelines.prepare import identity, linkage, pairs, scenes
from launch import face_networks
from tavr_jax.errors import InputError

Z = 32


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def faces_of(people, clips, spread=0.5, seed=0):
    """Identities around one direction a person, and whose each is."""
    generator = np.random.default_rng(seed)
    centres = unit(generator.normal(size=(people, Z)))
    who = np.repeat(np.arange(people), clips)
    around = generator.normal(size=(len(who), Z)) / np.sqrt(Z)
    return unit(centres[who] + spread * around).astype(np.float32), who


def same(labels):
    return np.equal.outer(labels, labels)


def cosine_of(vectors, names=None, files=None, same_person=0.6):
    names = names or [None] * len(vectors)
    files = files or [f"{i}.mp4" for i in range(len(vectors))]
    return identity.cluster(vectors, names, files, same_person)


def test_people_are_told_apart_and_the_order_of_clips_does_not_matter():
    vectors, who = faces_of(30, 4)
    labels = cosine_of(vectors)
    np.testing.assert_array_equal(same(labels), same(who))
    files = [f"{i // 2}.mp4" for i in range(len(who))]
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(who))
        moved = cosine_of(vectors[order], files=[files[i] for i in order])
        np.testing.assert_array_equal(same(moved), same(labels[order]))
        assert list(dict.fromkeys(moved)) == list(range(30))


def test_chains_change_nothing_and_block_sizes_neither(monkeypatch):
    vectors, _ = faces_of(12, 5, spread=0.9)
    files = [f"{i}.mp4" for i in range(len(vectors))]
    square = 1 - vectors.astype(np.float64) @ vectors.T
    for same_person in (0.3, 0.5, 0.7):
        whole = linkage.group(square, [None] * len(vectors), 1 - same_person)
        for block in (7, 2048):
            monkeypatch.setattr(identity, "BLOCK", block)
            found = cosine_of(vectors, files=files, same_person=same_person)
            np.testing.assert_array_equal(same(found), same(whole))


def test_a_chain_too_long_for_memory_is_cut_and_nobody_is_lost(monkeypatch):
    vectors, who = faces_of(6, 9, spread=0.3)
    monkeypatch.setattr(identity, "LONGEST_CHAIN", 10)
    labels = cosine_of(vectors, same_person=0.1)
    assert (same(labels) <= same(who)).all() and labels.max() < 12


def test_given_names_win_over_faces():
    """One person under two names stays two; two people under one name are one."""
    vectors, who = faces_of(4, 6)
    names = [None] * len(who)
    names[0], names[1], names[6], names[12] = "a", "b", "c", "c"
    labels = cosine_of(vectors, names)
    assert labels[0] != labels[1] and labels[6] == labels[12]
    assert set(labels[2:6]) <= {labels[0], labels[1]}
    assert len({*labels[18:24]}) == 1 and labels[18] not in labels[:18]
    zeros = np.zeros((3, Z), np.float32)
    assert len(set(cosine_of(zeros, same_person=0.0))) == 3


def test_groups_never_hold_two_names_and_names_are_whole():
    generator = np.random.default_rng(0)
    for _ in range(20):
        points = generator.normal(size=(15, 2))
        square = np.linalg.norm(points[:, None] - points[None], axis=-1)
        names = [generator.choice([None, "a", "b", "c"]) for _ in points]
        labels = linkage.group(square, names, generator.uniform(0, 3))
        held = {}
        for label, name in zip(labels, names, strict=True):
            if name is not None:
                assert held.setdefault(label, name) == name
        assert len(held) == len({name for name in names if name is not None})


# Scenes


def picture(background, clothes, light, seed=0):
    image = np.full((96, 160, 3), background, np.float32)
    image[10:40, ::20] += 40
    image[60:, 40:120] = clothes
    image[20:60, 60:100] = (200, 160, 140)
    image += np.random.default_rng(seed).normal(0, 6, image.shape)
    return np.clip(image * light, 0, 255).astype(np.uint8)


BOX = np.float32([60 / 160, 20 / 96, 100 / 160, 60 / 96])
SCENES = (
    ((40, 90, 160), (90, 20, 20), 1.0),
    ((40, 90, 160), (230, 230, 60), 0.75),
    ((150, 150, 140), (90, 20, 20), 1.0),
    ((60, 120, 60), (30, 30, 40), 0.8),
)


def signature(scene, seed):
    frames = np.stack([picture(*SCENES[scene], seed + 10 * i) for i in range(3)])
    return scenes.of_clip(frames, np.tile(BOX, (3, 1)))


def test_scenes_are_told_apart_by_background_clothes_and_light():
    where = np.repeat(np.arange(4), 3)
    signatures = np.stack([signature(w, i) for i, w in enumerate(where)])
    assert signatures.shape == (12, scenes.LENGTH) and signatures.dtype == np.float32
    square = scenes.distances(signatures, signatures)
    np.testing.assert_allclose(square, square.T)
    assert (np.diag(square) == 0).all() and square.max() <= 1
    assert square[same(where)].max() < 0.1 < 0.2 < square[~same(where)].min()
    files = [f"{i}.mp4" for i in range(12)]
    found = scenes.cluster(signatures, [None] * 12, files, [0.0] * 12, 0.15)
    np.testing.assert_array_equal(same(found), same(where))
    names = ["x", *[None] * 10, "x"]
    named = scenes.cluster(signatures, names, files, [0.0] * 12, 0.15)
    assert named[0] == named[11]


def test_a_moment_later_in_one_file_is_the_same_scene_rather_than_not():
    one, other = signature(0, 0)[None], signature(2, 0)[None]
    apart = float(scenes.distances(one, other)[0, 0])
    both, limit = np.concatenate([one, other]), 0.7 * apart
    for files, starts, count in [
        (["a", "a"], [0, 3], 1),
        (["a", "a"], [0, 300], 2),
        (["a", "b"], [0, 3], 2),
    ]:
        found = scenes.cluster(both, [None, None], files, starts, limit)
        assert len(set(found)) == count


# The one global step


def made_nodes(people=8, clips=3, seed=0):
    vectors, who = faces_of(people, clips, seed=seed)
    nodes = []
    for i, (vector, person) in enumerate(zip(vectors, who, strict=True)):
        name = f"raw/{i:03d}.mp4"
        place = signature((person + i) % 4, i)
        node = pairs.Node(f"{name}:0", name, 0.0, None, None, "", vector, place)
        nodes.append(node)
    return nodes, who


@pytest.fixture
def prepare():
    made = base.get_config().prepare
    made.same_person, made.same_scene, made.held_out = 0.6, 0.15, 0.3
    made.cluster_people = True
    return made


def test_connecting_does_not_depend_on_the_order_of_clips(prepare):
    nodes, who = made_nodes()
    placed = pairs.connect(nodes, prepare)
    people = np.array([p.person for p in placed])
    np.testing.assert_array_equal(same(people), same(who))
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(nodes))
        moved = pairs.connect([nodes[i] for i in order], prepare)
        assert moved == [placed[i] for i in order]
    for person in set(people):
        assert len({p.split for p in placed if p.person == person}) == 1


def test_hard_negatives_are_the_nearest_other_people_of_the_same_side(prepare):
    nodes, _ = made_nodes(people=12)
    placed = pairs.connect(nodes, prepare)
    number = {node.clip_id: i for i, node in enumerate(nodes)}
    for node, place in zip(nodes, placed, strict=True):
        others = [placed[number[name]] for name in place.negatives]
        people = [other.person for other in others]
        assert len(set(people)) == len(people) and place.person not in people
        assert {other.split for other in others} <= {place.split}
        there = {p.person for p in placed if p.split == place.split} - {place.person}
        assert len(people) == min(prepare.negatives, len(there))
        for name, person in zip(place.negatives, people, strict=True):
            rivals = [i for i, p in enumerate(placed) if p.person == person]
            best = max(rivals, key=lambda i: nodes[i].identity @ node.identity)
            assert number[name] == best
    prepare.negatives = 0
    assert not any(p.negatives for p in pairs.connect(nodes, prepare))


def test_without_measurements_a_file_is_a_person_and_given_sides_hold(prepare):
    nothing = np.zeros(0, np.float32)

    def node(name, part="", person=None, scene=None, split=""):
        file = f"{name}.mp4{part}"
        args = (f"{file}:0", file, 0.0, person, scene, split, nothing, nothing)
        return pairs.Node(*args)

    nodes = [
        *(node("a", "#0-2"), node("a", "#5-9"), node("b"), node("ann/x", person="a")),
        node("q", person="q", split="test"),
        node("r", person="q", scene="home"),
    ]
    found = pairs.connect(nodes, prepare)
    assert [p.person for p in found] == ["a~2", "a~2", "b", "a", "q", "q"]
    assert [p.scene for p in found] == ["a", "a", "b", "ann/x", "q", "home"]
    assert found[5].split == "test"
    hostile = [node("x#1"), node("x#2"), node("x#2", "#1.5-")]
    assert [p.person for p in pairs.connect(hostile, prepare)] == ["x#1", "x#2", "x#2"]
    with pytest.raises(InputError, match=r"split: q is in .* and in"):
        pairs.connect([*nodes, node("s", person="q", split="train")], prepare)
    mixed = [nodes[2]._replace(identity=np.ones(n, np.float32)) for n in (3, 4)]
    with pytest.raises(InputError, match=r"vectors of \[3, 4\] numbers"):
        pairs.connect(mixed, prepare)


# Pairs


def rows_of(counts):
    """counts[person][scene] clips each."""
    rows = []
    for person, places in enumerate(counts):
        for scene, count in enumerate(places):
            for number in range(count):
                name = f"p{person}/s{scene}/{number}"
                row = records.Row(
                    *(name, name, f"p{person}", f"s{scene}", "train", len(rows)),
                    *(33, (32, 32), "landscape", 4, (1,) * 8),
                )
                rows.append(row)
    return rows


def test_nobody_is_a_partner_of_his_own_clip_or_scene_across_scenes():
    rows = rows_of([(3, 1, 1), (2,), (1, 1), (40, 2)])
    index, generator = pairs.PairIndex(rows), np.random.default_rng(0)
    assert pairs.partners(rows) == [index.cross_scene(i) for i in range(len(rows))]
    for i, row in enumerate(rows):
        assert i in index.same_scene(i) and i not in index.cross_scene(i)
        others = [rows[j] for j in index.cross_scene(i)]
        assert all(o.person == row.person and o.scene != row.scene for o in others)
        expected = sum(o.person == row.person and o.scene != row.scene for o in rows)
        assert len(others) == expected and index.crosses(i) == bool(expected)
        if others:
            assert index.draw_cross_scene(generator, i) in index.cross_scene(i)
        assert index.draw_same_scene(generator, i) in index.same_scene(i)


def test_other_scenes_are_drawn_alike_however_many_clips_they_have():
    rows = rows_of([(1, 30, 2)])
    index, generator = pairs.PairIndex(rows), np.random.default_rng(0)
    drawn = [rows[index.draw_cross_scene(generator, 0)].scene for _ in range(2000)]
    assert 900 < drawn.count("s1") < 1100


@pytest.mark.parametrize("most", [0, 1, 3, 7])
def test_an_epoch_takes_so_many_clips_of_a_person_and_all_come_as_often(most):
    rows = rows_of([(4, 4), (1, 1), (7,), (2, 1)])
    index, everyone = pairs.PairIndex(rows), list(range(len(rows)))
    turns = index.turns(everyone, most)
    seen, epochs = np.zeros(len(rows), int), 8 * 2 * 7 * 3
    for epoch in range(epochs):
        chosen = [turn.row(epoch) for turn in turns]
        assert len(set(chosen)) == len(chosen)
        people = [rows[i].person for i in chosen]
        for person, held in (("p0", 8), ("p1", 2), ("p2", 7), ("p3", 3)):
            assert people.count(person) == min(most or held, held)
        seen[chosen] += 1
    for person in {row.person for row in rows}:
        assert len({seen[i] for i, row in enumerate(rows) if row.person == person}) == 1


# Real faces


def test_the_mini_network_survives_pickling_and_is_deterministic():
    config = same_scene.get_config("mini")
    network = face_networks.load(config)
    frames = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    boxes = np.tile(np.float32([0.2, 0.2, 0.8, 0.8]), (5, 1))
    found = identity.of_clip(frames, boxes, network, 3)
    assert found.shape == (128,) and abs(np.linalg.norm(found) - 1) < 1e-5
    again = pickle.loads(pickle.dumps(network))
    np.testing.assert_array_equal(identity.of_clip(frames, boxes, again, 3), found)
    assert identity.of_clip(frames, boxes, None, 3).shape == (0,)


def test_real_people_are_found_again_in_other_scenes_by_a_plugged_in_network(shared):
    weights = shared / "media/weights/mobilefacenet_foamliu.onnx"
    if not weights.is_file():
        pytest.skip(f"no {weights}")
    config = same_scene.get_config("tavr_14b")
    config.networks.identity = str(weights)
    network = face_networks.load(config)
    places = (
        "unclear-licence/videos/obama_*.mp4",
        "videos/WDA-*.mp4",
        "videos/grid-[AB]*",
    )
    files = [p for place in places for p in sorted((shared / "media").glob(place))]
    who, vectors, signatures = [], [], []
    for path in files:
        frames = media.read_frames(path, 25, limit=30)[::10]
        frames = media.cover_resize(frames, (448, 448))
        boxes = people.track_faces(frames, 1).boxes
        vectors.append(identity.of_clip(frames, boxes, network, 3))
        signatures.append(scenes.of_clip(frames, boxes))
        who.append(path.stem.split("_")[0])
    labels = cosine_of(np.stack(vectors), same_person=0.45)
    np.testing.assert_array_equal(same(labels), same(np.array(who)))
    assert who.count("obama") == 3
    three = scenes.distances(np.stack(signatures[:3]), np.stack(signatures[:3]))
    assert (three + np.eye(3)).min() > config.prepare.same_scene


def test_a_face_network_that_is_not_there_or_knows_nobody_is_named():
    config = same_scene.get_config("mini")
    config.prepare.cluster_people = True
    with pytest.raises(InputError, match=r"cluster_people: .*networks\.identity=FILE"):
        face_networks.load(config)
    config.networks.identity = "/none/face.onnx"
    with pytest.raises(InputError, match=r"/none/face\.onnx: no such file"):
        face_networks.load(config)


def test_scenes_of_a_named_person_are_found_without_any_face_network(prepare):
    nodes, who = made_nodes(people=2, clips=8)
    prepare.cluster_people = False
    named = [n._replace(person=f"p{w}") for n, w in zip(nodes, who, strict=True)]
    placed = pairs.connect(named, prepare)
    assert [p.person for p in placed] == [n.person for n in named]
    where = np.array([f"{w}{(w + i) % 4}" for i, w in enumerate(who)])
    found = np.array([f"{p.person}{p.scene}" for p in placed])
    np.testing.assert_array_equal(same(found), same(where))
