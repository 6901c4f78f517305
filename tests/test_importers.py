"""Footage as folders and manifests name it, and the guard of benchmarks."""

import csv
import io
import json
from pathlib import Path

import pytest

from data_pipelines.prepare import importers, leaks
from data_pipelines.prepare.importers import Video, find_videos
from tavr_jax.errors import InputError

IDS = ("Tr6MMsoWAog", "dQw4w9WgXcQ", "aB3_-xYz012")


@pytest.fixture
def folder(tmp_path):
    for name in ("a.mp4", "ann/x.mp4", "ann/deep/y.MOV", "zoë $(rm)/ü.mkv", ".b.mp4"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "notes.txt").touch()
    return tmp_path


def test_folders_name_people_and_scenes_and_single_files_only_if_not_clustered(folder):
    found = {v.video_id: (v.person, v.scene) for v in find_videos(folder)}
    assert found == {
        "a.mp4": ("a", "a"),
        "ann/x.mp4": ("ann", "x"),
        "ann/deep/y.MOV": ("ann", "deep/y"),
        "zoë $(rm)/ü.mkv": ("zoë $(rm)", "ü"),
    }
    clustered = {v.video_id: (v.person, v.scene) for v in find_videos(folder, True)}
    assert clustered == found | {"a.mp4": (None, None)}


def test_links_are_followed_and_every_folder_counts_once(folder, tmp_path_factory):
    before = [video.video_id for video in find_videos(folder)]
    outside = tmp_path_factory.mktemp("outside")
    (outside / "z.mp4").touch()
    for name, target in {
        "ann/loop": folder,
        "0": folder / "zoë $(rm)",
        "bob": outside,
        "carl": outside,
    }.items():
        (folder / name).symlink_to(target)
    found = [video.video_id for video in find_videos(folder)]
    assert found == sorted([*before, "bob/z.mp4"])


def manifest(videos, columns=importers.COLUMNS):
    """Lines of a manifest that says what these videos say."""
    return [
        {
            "video": video.video_id.partition("#")[0],
            "person": video.person or "",
            "scene": video.scene or "",
            "caption": video.caption,
            "start": "" if video.start is None else video.start,
            "end": "" if video.end is None else video.end,
            "licence": video.licence,
            "split": video.split,
        }
        for video in videos
    ]


def test_a_manifest_round_trips_in_all_three_forms(folder):
    videos = [
        Video(folder / "a.mp4", "a.mp4", None, None),
        Video(
            *(folder / "ann/x.mp4", "ann/x.mp4#0-2.5", "Ann", "at, home"),
            *('says "hi"', 0.0, 2.5, "CC BY 4.0", "test"),
        ),
        Video(folder / "ann/x.mp4", "ann/x.mp4#3-", "Ann", None, "é", 3.0),
        Video(folder / "zoë $(rm)/ü.mkv", "zoë $(rm)/ü.mkv", "zoë", "ü"),
    ]
    lines, table = manifest(videos), io.StringIO()
    writer = csv.DictWriter(table, importers.COLUMNS)
    writer.writeheader()
    writer.writerows(lines)
    for name, text in {
        "m.csv": table.getvalue(),
        "bom.csv": "\ufeff" + table.getvalue(),
        "m.jsonl": "\n".join(map(json.dumps, lines)) + "\n\n",
        "m.json": json.dumps(lines),
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
        found = find_videos(folder / name)
        assert found == sorted(videos, key=lambda v: v.video_id), name
        assert find_videos(folder / name, cluster=True) == found


def test_talkvid_gives_people_captions_links_and_times_of_whole_videos_only(tmp_path):
    entries = [
        {
            "id": f"videovideo{IDS[i % 2]}-scene{i}-scene1",
            "start-time": 0.1 + i,
            "end-time": 5.25 + i,
            "info": {
                "Person ID": "597",
                "Video Link": f"https://www.youtube.com/watch?v={IDS[i % 2]}",
            },
            "description": "an older  man",
        }
        for i in range(3)
    ]
    (tmp_path / f"{entries[0]['id']}.mp4").touch()
    (tmp_path / "videos").mkdir()
    (tmp_path / f"videos/{IDS[1]}.mp4").touch()
    (tmp_path / f"{IDS[0]}.mp4").touch()
    (tmp_path / "clips.json").write_text(json.dumps(entries))
    cut, other, whole = sorted(
        find_videos(tmp_path / "clips.json"), key=lambda video: video.path.name
    )[::-1]
    assert cut.video_id == f"{entries[0]['id']}.mp4" and cut.start is None
    assert (whole.video_id, whole.start, whole.end) == (
        *(f"{IDS[0]}.mp4#2.1-7.25", 2.1, 7.25),
    )
    assert other.path == tmp_path / f"videos/{IDS[1]}.mp4"
    for video in (cut, whole, other):
        assert (video.person, video.scene) == ("talkvid-597", None)
        assert video.caption == "an older man" and "youtube" in video.link


def test_pairs_are_one_person_in_as_many_scenes_as_files(folder):
    line = {"target": "a.mp4", "reference": ["ann/x.mp4", "ann/deep/y.MOV"]}
    (folder / "p.jsonl").write_text(json.dumps(line | {"caption": "hi"}))
    found = find_videos(folder / "p.jsonl")
    assert {video.person for video in found} == {"a.mp4"}
    assert len({video.scene for video in found}) == 3
    assert [video.caption for video in found] == ["hi", "", ""]
    more = [line, {"target": "zoë $(rm)/ü.mkv", "reference": "ann/x.mp4"}]
    (folder / "p.jsonl").write_text("\n".join(map(json.dumps, more)))
    found = find_videos(folder / "p.jsonl")
    assert len(found) == 4 and {video.person for video in found} == {"a.mp4"}
    line["reference"] = ["faces/1.jpg", "faces/2.PNG"]
    (folder / "p.jsonl").write_text(json.dumps(line))
    (alone,) = find_videos(folder / "p.jsonl")
    assert (alone.video_id, alone.person, alone.scene) == ("a.mp4", None, None)


def test_only_line_feeds_end_a_line_of_json(folder):
    """JSON text may hold other marks that str.splitlines takes for ends."""
    lines = [
        {"video": "a.mp4", "caption": "one\u2028two", "person": "A\x85B"},
        {"video": "ann/x.mp4", "caption": "three"},
    ]
    text = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / "m.jsonl").write_text(text, encoding="utf-8", newline="")
    found = find_videos(folder / "m.jsonl")
    assert [video.caption for video in found] == ["one two", "three"]
    (folder / "b.jsonl").write_text(text, encoding="utf-8", newline="")
    guard = leaks.leaks([folder / "b.jsonl"])
    assert leaks.without_leaks(found, guard)[0] == []
    text = text[:-1]
    (folder / "m.jsonl").write_text(text, encoding="utf-8", newline="")
    with pytest.raises(InputError, match="line 2: entry: not JSON"):
        find_videos(folder / "m.jsonl")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "clip,person\n1,2\n", r"line 1: video: no such column"),
        ("m.csv", "video,split\na.mp4,val\n", r"line 2: split: 'val' is none"),
        ("m.csv", "video,person\na.mp4,b,c\n", r"line 2: row: not as many"),
        ("m.csv", 'video,person\n"a.mp4,b\n', r"line 2: row: .*quotes"),
        ("m.csv", "video,mood\na.mp4,good\n", r"line 2: mood: no such column"),
        ("m.csv", "video\nb.mp4\n", r"line 2: video: .*b.mp4 is not there"),
        ("m.csv", "video\nnotes.txt\n", r"line 2: video: notes.txt is no video"),
        ("m.csv", "video\n", r"m.csv: lists no video"),
        ("m.jsonl", '{"video": "a.mp4"}\n{"video"', r"line 2: entry: not JSON"),
        ("m.jsonl", '["a.mp4"]\n', r"line 1: entry: not an object"),
        (
            "m.jsonl",
            '{"video": "a.mp4", "start": "x"}',
            r"line 1: start: 'x' is no time",
        ),
        ("m.jsonl", '{"video": "a.mp4", "start": 2, "end": 1}', r"line 1: end: 1 s is"),
        (
            "m.jsonl",
            '{"video": "a.mp4", "person": [1]}',
            r"line 1: person: \[1\] is not",
        ),
        ("m.jsonl", '{"video": ""}', r"line 1: video: is empty"),
        (
            "m.jsonl",
            '{"video": "a.mp4"}\n{"video": "a.mp4", "person": "b"}',
            r"line 2: video: a.mp4 is listed before",
        ),
        ("m.jsonl", '{"target": "a.mp4"}', r"line 1: reference: is empty"),
        (
            "m.jsonl",
            '{"target": "a.mp4", "reference": [3]}',
            r"reference: 3 is no path",
        ),
        ("m.json", '{"video": "a.mp4"}', r"m.json: is no list of entries"),
        ("m.json", '[{"id": "x", "info": 3}]', r"entry 1: info: is no object"),
        ("m.txt", "a.mp4", r"m.txt: no such folder; give a folder of videos or a man"),
    ],
)
def test_a_bad_manifest_names_file_line_and_field(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        find_videos(folder / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


# The leak guard


def video(name, link=""):
    return Video(Path("/any") / name, name, None, None, link=link)


@pytest.fixture
def guard(tmp_path):
    """Ids in every shape that a benchmark file may have."""
    nested = {
        "pairs": [
            {"id": 1, "target": {"url": f"https://youtu.be/{IDS[0]}?t=3"}},
            {"id": 2, "reference": {"path": f"data/{IDS[1]}/clip_0.mp4"}},
            {"caption": "nobody names a video here", "audio": {"text": "kitchen"}},
        ]
    }
    (tmp_path / "b.json").write_text(json.dumps(nested))
    lines = [{"video_id": "abc"}, {"videos": [f"videovideo{IDS[2]}-scene1.mp4"]}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return leaks.leaks([tmp_path / "b.json", str(tmp_path / "b.jsonl")])


@pytest.mark.parametrize(
    "name",
    [
        *(f"{i}.mp4" for i in IDS),
        *(f"p/{i.lower()}_0003.mkv" for i in IDS),
        *(f"videovideo{i}-scene4-scene1.mp4" for i in IDS),
        *(f"{i}/7.mp4#2-5" for i in IDS),
        *("abc.mp4", "ABC.mov", "x/abc_0003.mp4", "abc-scene2.mp4", "abc.mp4#0-2"),
    ],
)
def test_footage_of_a_benchmark_is_left_out_whatever_it_is_called(guard, name):
    assert guard.reason(video(name))
    kept, left_out = leaks.without_leaks([video(name), video("fine.mp4")], guard)
    assert [v.video_id for v in kept] == ["fine.mp4"]
    assert left_out[0][0].video_id == name


def test_links_leak_too_and_other_names_do_not(guard):
    for i in IDS:
        assert guard.reason(video("1.mp4", f"https://www.youtube.com/watch?v={i}"))
    for name in ("abcd.mp4", "clip_0.mp4", "1.mp4", "kitchen.mp4", "x_abcd_1.mp4"):
        assert not guard.reason(video(name)), name
    empty = leaks.leaks([])
    assert not empty.reason(video("abc.mp4"))


def test_every_id_of_158_pairs_is_guarded_and_nothing_else(tmp_path):
    ids = [f"k{i:03d}-Q{'xYz_9'[i % 5]}Wm{i % 10}v" for i in range(316)]
    pairs = [
        {"target": {"video_id": a}, "reference": {"video_id": b}}
        for a, b in zip(ids[::2], ids[1::2], strict=True)
    ]
    (tmp_path / "b.json").write_text(json.dumps(pairs))
    guard = leaks.leaks([tmp_path / "b.json"])
    footage = [video(f"{i}_clip{n}.mp4") for n, i in enumerate(ids)]
    others = [video(f"z{n:03d}-QxWm{n % 10}v.mp4") for n in range(400)]
    kept, left_out = leaks.without_leaks([*footage, *others], guard)
    assert kept == others and [v for v, _ in left_out] == footage


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no video id in it"),
        ('{"text": "abc"}', "no video id in it"),
        ('{"video_id": "abc"}\n{"video', "line 2: entry: not JSON"),
        (None, "cannot be read"),
    ],
)
def test_a_guard_that_guards_nothing_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "b.json").write_text(text)
    with pytest.raises(InputError, match=message):
        leaks.leaks([tmp_path / "b.json"])
