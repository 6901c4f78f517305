"""Who is who, who is held out, who may refer to whom.

The one global step of preparing: clips of all footage -> people, scenes, sides and hard
negatives (`connect`). And what the loader asks of the result: the clips of the same
person in the same scene and in others (`PairIndex`), so that nobody dominates:

    - an epoch takes at most so many targets of a person, and other ones the next time
    - a reference's scene is drawn first, each other scene alike, then a clip of it

Footage itself is found by importers.py.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.prepare.importers import (
    Video,
    file_of,
    find_videos,
    read_caption,
)
from data_pipelines.records import Row
from tavr_jax.errors import InputError

__all__ = [
    "Node",
    "PairIndex",
    "Placed",
    "Turn",
    "Video",
    "connect",
    "find_videos",
    "is_held_out",
    "node",
    "partners",
    "read_caption",
]


class Node(NamedTuple):
    """What is known and measured of a clip before people and scenes are."""

    clip_id: str
    video_id: str
    start: float  # seconds into the footage
    person: str | None
    scene: str | None
    split: str  # "": by prepare.held_out
    identity: np.ndarray  # (Z,), or (0,) where no network looked
    signature: np.ndarray  # (S,), or (0,)

    @property
    def file(self) -> str:
        """The footage without the part that was taken of it."""
        return file_of(self.video_id)


class Placed(NamedTuple):
    """Where a clip belongs."""

    person: str
    scene: str
    split: str
    negatives: tuple[str, ...]  # clips of the most similar other people, nearest first


def node(clip: Mapping[str, Any]) -> Node:
    """A clip record, not yet placed, as a node; empty texts are unknown."""
    return Node(
        clip_id=clip["clip_id"],
        video_id=clip["video_id"],
        start=float(clip.get("start", 0.0)),
        person=clip["person"] or None,
        scene=clip["scene"] or None,
        split=clip.get("split", ""),
        identity=np.asarray(clip.get("identity", ()), np.float32),
        signature=np.asarray(clip.get("scene_signature", ()), np.float32),
    )


def connect(nodes: Sequence[Node], prepare: ConfigDict) -> list[Placed]:
    """People, scenes, sides and hard negatives of all clips, in the order given.

    Given names win; where nothing was measured a file is a person and a scene. The
    result does not depend on the order.
    """
    order = sorted(range(len(nodes)), key=lambda i: nodes[i].clip_id)
    ordered = [nodes[i] for i in order]
    people = _people(ordered, prepare)
    scenes = _scenes(ordered, people, prepare)
    splits = _splits(ordered, people, prepare)
    hard = _hard_negatives(ordered, people, splits, prepare.negatives)
    placed = map(Placed, people, scenes, splits, hard)
    back = dict(zip(order, placed, strict=True))
    return [back[i] for i in range(len(nodes))]


def is_held_out(person: str, share: float) -> bool:
    """Whether a person is kept for the test split.

    A function of the name alone: nobody changes sides when footage is added.
    """
    digest = hashlib.sha256(person.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def partners(rows: Sequence[Row]) -> list[list[int]]:
    """For every row the rows of the same person in another scene."""
    index = PairIndex(rows)
    return [index.cross_scene(row) for row in range(len(rows))]


class PairIndex:
    """Who may refer to whom, among the rows of a split."""

    def __init__(self, rows: Sequence[Row]):
        self._rows = rows
        self._places: dict[str, dict[str, list[int]]] = defaultdict(dict)
        for index, row in enumerate(rows):
            self._places[row.person].setdefault(row.scene, []).append(index)

    def same_scene(self, index: int) -> list[int]:
        """Rows of the same person in the same scene, the row itself among them."""
        row = self._rows[index]
        return self._places[row.person][row.scene]

    def cross_scene(self, index: int) -> list[int]:
        """Rows of the same person in other scenes, in order."""
        row = self._rows[index]
        places = self._places[row.person]
        return sorted(i for s, held in places.items() if s != row.scene for i in held)

    def crosses(self, index: int) -> bool:
        """Whether `cross_scene` holds anything."""
        return len(self._places[self._rows[index].person]) > 1

    def draw_same_scene(self, generator: np.random.Generator, index: int) -> int:
        """A row of `same_scene`."""
        return int(generator.choice(self.same_scene(index)))

    def draw_cross_scene(self, generator: np.random.Generator, index: int) -> int:
        """A row of `cross_scene`: every other scene alike, then every clip of it."""
        row = self._rows[index]
        places = self._places[row.person]
        others = [scene for scene in places if scene != row.scene]
        return int(generator.choice(places[others[generator.integers(len(others))]]))

    def turns(self, indices: Sequence[int], most: int) -> list["Turn"]:
        """The slots of an epoch, each with the rows that take it in turns.

        A person has as many slots as rows, or `most` (0 = no limit). Within an epoch no
        row comes twice; over as many epochs as a person has rows, each comes as often.
        """
        by_person = defaultdict(list)
        for index in indices:
            by_person[self._rows[index].person].append(index)
        slots = []
        for held in by_person.values():
            count = min(most or len(held), len(held))
            slots += [Turn(held, slot, count) for slot in range(count)]
        return slots


class Turn(NamedTuple):
    """One slot of every epoch: epoch e takes the rows from e * step on."""

    rows: list[int]
    slot: int
    step: int

    def row(self, epoch: int) -> int:
        """Who has this slot."""
        return self.rows[(epoch * self.step + self.slot) % len(self.rows)]


# The parts of `connect`; nodes are in order of their ids


def _people(nodes: list[Node], prepare: ConfigDict) -> list[str]:
    from data_pipelines.prepare import identity  # worker processes need no SciPy

    files, names = [n.file for n in nodes], [n.person for n in nodes]
    labels = _by_file(files, names)
    if prepare.cluster_people and None in names:
        found = _matrix(nodes, "identity")
        if found is not None:
            labels = identity.cluster(found, names, files, prepare.same_person)
    return _named(labels, names, [_stem(file) for file in files], set(names) - {None})


def _scenes(nodes: list[Node], people: list[str], prepare: ConfigDict) -> list[str]:
    from data_pipelines.prepare import scenes

    result, by_person = [""] * len(nodes), defaultdict(list)
    for index, person in enumerate(people):
        by_person[person].append(index)
    for held in by_person.values():
        inside = [nodes[i] for i in held]
        files, names = [n.file for n in inside], [n.scene for n in inside]
        labels = _by_file(files, names)
        if None in names:
            found = _matrix(inside, "signature")
            if found is not None:
                starts = [n.start for n in inside]
                labels = scenes.cluster(found, names, files, starts, prepare.same_scene)
        stems = [_stem(file) for file in files]
        for index, name in zip(
            held, _named(labels, names, stems, set(names) - {None}), strict=True
        ):
            result[index] = name
    return result


def _by_file(files: list[str], names: list[str | None]) -> list[int]:
    """Groups of equal names, and of one file where there is no name."""
    keys = [
        ("file", file) if name is None else ("name", name)
        for file, name in zip(files, names, strict=True)
    ]
    number = {key: index for index, key in enumerate(dict.fromkeys(keys))}
    return [number[key] for key in keys]


def _matrix(nodes: list[Node], field: str) -> np.ndarray | None:
    """One row a clip, zeros where nothing was measured; None if nothing ever was.

    InputError: vectors of several lengths, so of several networks.
    """
    vectors = [getattr(n, field) for n in nodes]
    lengths = {len(vector) for vector in vectors} - {0}
    if len(lengths) > 1:
        raise InputError(
            f"prepare: {field}: clips hold vectors of {sorted(lengths)} numbers; "
            "prepare all footage with one network"
        )
    if not lengths:
        return None
    found = np.zeros((len(nodes), lengths.pop()), np.float32)
    for row, vector in zip(found, vectors, strict=True):
        row[: len(vector)] = vector
    return found


def _named(
    labels: Sequence[int], names: Sequence[str | None], stems: list[str], taken: set
) -> list[str]:
    """A name for every group: the given one, or the first file's, made unique."""
    known: dict[int, str] = {}
    for label, name in zip(labels, names, strict=True):
        if name is not None:
            known[label] = name
    taken = set(taken)
    for label, stem in zip(labels, stems, strict=True):
        if label not in known:
            name, count = stem, 1
            while name in taken:
                name, count = f"{stem}~{count + 1}", count + 1
            known[label] = name
            taken.add(name)
    return [known[label] for label in labels]


def _stem(file: str) -> str:
    path = PurePosixPath(file)
    return (path.parent / path.stem).as_posix()


def _splits(nodes: list[Node], people: list[str], prepare: ConfigDict) -> list[str]:
    """Given sides; a person of whom one is given is whole on it, else by name.

    InputError: a person on both sides.
    """
    given: dict[str, tuple[str, str]] = {}
    for found, person in zip(nodes, people, strict=True):
        if found.split:
            side, clip = given.setdefault(person, (found.split, found.clip_id))
            if side != found.split:
                raise InputError(
                    f"--source: split: {person} is in {side} ({clip}) and in "
                    f"{found.split} ({found.clip_id}); give a person one side"
                )
    sides = ("train", "test")
    return [
        given[person][0]
        if person in given
        else sides[is_held_out(person, prepare.held_out)]
        for person in people
    ]


def _hard_negatives(
    nodes: list[Node], people: list[str], splits: list[str], count: int
) -> list[tuple[str, ...]]:
    """For every clip the most similar clip of each of the `count` nearest people."""
    result: list[tuple[str, ...]] = [()] * len(nodes)
    vectors = _matrix(nodes, "identity")
    if vectors is None or not count:
        return result
    for side in set(splits):
        rows = [
            row
            for row, split in enumerate(splits)
            if split == side and vectors[row].any()
        ]
        by_person = defaultdict(list)
        for row in rows:
            by_person[people[row]].append(row)
        held = list(by_person.values())
        if len(held) < 2:
            continue
        centres = np.stack([vectors[members].mean(axis=0) for members in held])
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-9)
        for number, members in enumerate(held):
            alike = centres @ centres[number]
            alike[number] = -np.inf
            first = min(count, len(held) - 1)
            nearest = np.argpartition(-alike, first - 1)[:first]
            nearest = nearest[np.argsort(-alike[nearest], kind="stable")]
            others = [held[other] for other in nearest]
            for row in members:
                best = [o[int((vectors[o] @ vectors[row]).argmax())] for o in others]
                result[row] = tuple(nodes[i].clip_id for i in best)
    return result
