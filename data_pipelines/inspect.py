"""Look into a dataset: its card, a contact sheet and samples to play.

    python -m data_pipelines.inspect DATASET [--output FOLDER] [--samples 8]

Prints what is in it and what was left out, and writes into FOLDER (DATASET.inspect):

    card.txt         what was printed
    contact.png      a row a clip: first, middle and last frame as stored, the still as
                     the model sees it, a reference in another scene (or the same), and
                     the most similar other person
    sample_00.mp4    clips with their sound and with everything drawn over them

Green: the face box. Yellow: face tokens of a reference. Blue: the person's region,
hidden in the still. Nothing in the dataset is changed.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy import ndarray

from data_pipelines import conditions, media, records, video_files
from data_pipelines.prepare.pairs import PairIndex
from data_pipelines.records import Row
from tavr_jax.errors import InputError

SIDE = 224  # pixels of a picture's longer side in the sheet
SHOWN = 480  # pixels of a sample's shorter side, at least
MARGIN = 6
FACE, TOKENS, PERSON = (60, 220, 90), (250, 200, 40), (70, 140, 255)
INK, PAPER, FAINT = (30, 30, 30), (250, 250, 248), (120, 120, 120)
TINT = 0.08  # of a region: faces must be judged through it
FPS = 25


def main(arguments: list[str]) -> None:
    """Read the flags, print the card, write the pictures."""
    parser = argparse.ArgumentParser(prog="python -m data_pipelines.inspect")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--output", type=Path, help="default: DATASET.inspect")
    parser.add_argument("--samples", type=int, default=8, help="clips shown")
    flags = parser.parse_args(arguments)
    root = flags.dataset
    output = flags.output or root.with_name(f"{root.resolve().name}.inspect")
    text = card(root)
    print(text, end="")
    output.mkdir(parents=True, exist_ok=True)
    (output / "card.txt").write_text(text, encoding="utf-8")
    viewer = Viewer(root)
    chosen = choose(viewer.rows, flags.samples)
    sheet = np.concatenate([viewer.header(), *map(viewer.strip, chosen)])
    cv2.imwrite(str(output / "contact.png"), sheet[..., ::-1])
    for number, index in enumerate(chosen):
        viewer.play(index, output / f"sample_{number:02d}.mp4")
    print(f"{output}: contact.png, {len(chosen)} samples")


# The card


def card(root: Path) -> str:
    """What a dataset holds, as text. InputError: no dataset, another version."""
    summary, rows = records.read_summary(root), records.read_index(root)
    lines = [
        f"{root}",
        f"  version {summary['version']}   made with {summary.get('config', '?')}   "
        f"codec {summary.get('codec', '?')}",
        "",
    ]
    header = "  split    clips  people  scenes  minutes  cross-scene  frames    sizes"
    lines.append(header)
    for split in records.SPLITS:
        held = [row for row in rows if row.split == split]
        if held:
            lines.append(_split_line(split, held))
    licences = Counter(row.licence or "not stated" for row in rows)
    negatives = Counter(f"{len(row.negatives)} a clip" for row in rows)
    lines += ["", f"  licence         {_counts(licences)}"]
    lines.append(f"  hard negatives  {_counts(negatives)}")
    lines += ["", *_fields(root, rows)]
    reasons = _rejects(root)
    total = sum(reasons.values())
    lines += ["", f"  left out: {total}" + (f" ({_counts(reasons)})" if total else "")]
    return "\n".join(lines) + "\n"


def _split_line(split: str, rows: list[Row]) -> str:
    index, frames = PairIndex(rows), [row.frames for row in rows]
    crossing = sum(index.crosses(i) for i in range(len(rows)))
    scenes = len({(row.person, row.scene) for row in rows})
    sizes = Counter(f"{row.size[1]}x{row.size[0]}" for row in rows)
    span = f"{min(frames)}-{max(frames)}"
    return (
        f"  {split:8}{len(rows):6}{len({row.person for row in rows}):8}{scenes:8}"
        f"{sum(frames) / FPS / 60:9.1f}{crossing:13}  {span:8}  {_counts(sizes)}"
    )


def _counts(found: Counter) -> str:
    return ", ".join(f"{count} x {name}" for name, count in found.most_common())


def _fields(root: Path, rows: list[Row]) -> list[str]:
    """Fields of both records: kind, and shape in the first clip."""
    lines = []
    for name in _stored(root):
        record = records.open_records(root, name, rows[0].split)[rows[0].record]
        folder = root / name / records.VERSION
        size = sum(path.stat().st_size for path in folder.glob("*array_record*"))
        per_clip = size / len(rows) / 1e6
        lines.append(f"  {name}: {size / 1e6:.1f} MB, {per_clip:.2f} MB a clip")
        for field, value in sorted(record.items()):
            lines.append(f"    {field:18} {_kind(value)}")
    if not records.is_encoded(root):
        lines.append("  encoded: not stored (prepare.encode=False)")
    return lines


def _stored(root: Path) -> list[str]:
    return ["clips", "encoded"] if records.is_encoded(root) else ["clips"]


def _kind(value: Any) -> str:
    if isinstance(value, bytes):
        text = value[:48].decode("utf-8", "replace")
        readable = text.isprintable() and "\ufffd" not in text
        return f"text      {text}" if readable else f"bytes     {len(value)}"
    value = np.asarray(value)
    shape = " x ".join(map(str, value.shape)) or "one"
    return f"{value.dtype!s:9} {shape}"


def _rejects(root: Path) -> Counter:
    path = root / records.REJECTS
    if not path.is_file():
        return Counter()
    lines = path.read_text(encoding="utf-8").splitlines()
    return Counter(json.loads(line)["reason"] for line in lines)


# The pictures


def choose(rows: list[Row], count: int) -> list[int]:
    """Clips to show: one of every person before a second of anybody, people spread."""
    turns: Counter = Counter()
    order = []
    for index, row in enumerate(rows):
        order.append((turns[row.person], index))
        turns[row.person] += 1
    order = [index for _, index in sorted(order)]
    first = [index for index in order[: len(turns)]]
    if len(first) > count > 0:
        places = np.linspace(0, len(first) - 1, count).astype(int)
        return [first[place] for place in places]
    return order[:count]


class Viewer:
    """Clips of a dataset as pictures."""

    def __init__(self, root: Path):
        self.rows = records.read_index(root)
        self._number = {row.clip_id: i for i, row in enumerate(self.rows)}
        self._splits = {row.split for row in self.rows}
        self._opened = {
            (name, split): records.open_records(root, name, split)
            for name in _stored(root)
            for split in self._splits
        }
        self._pairs = {
            split: PairIndex([r if r.split == split else _nobody(r) for r in self.rows])
            for split in self._splits
        }

    def header(self) -> ndarray:
        """The line above the sheet."""
        names = ("first", "middle", "last", "still, as seen", "reference", "negative")
        page = _page(44, len(names))
        told = "face box", "face tokens of a reference", "person, hidden in the still"
        for number, text in enumerate(told):
            left = MARGIN + number * (SIDE + MARGIN)
            cv2.rectangle(
                page, (left, 8), (left + 14, 16), (FACE, TOKENS, PERSON)[number], -1
            )
            _write(page, text, left + 20, 17, INK)
        for number, name in enumerate(names):
            _write(page, name, MARGIN + number * (SIDE + MARGIN), 38, FAINT)
        return page

    def strip(self, index: int) -> ndarray:
        """One row of the sheet."""
        row, clip = self.rows[index], self._read("clips", index)
        frames, person = media.decode_mp4(clip["video"]), self._person(clip, row)
        chosen = (0, len(frames) // 2, len(frames) - 1)
        tiles = [_drawn(frames[i], clip["face_boxes"][i], person, None) for i in chosen]
        grey = (conditions.grey_person(frames[0], person) + 1) * 127.5
        tiles.append(grey.astype(np.uint8))
        other = self._reference(index)
        tiles.append(self._as_reference(other))
        if row.negatives and row.negatives[0] in self._number:
            negative = self._number[row.negatives[0]]
            tiles.append(media.decode_mp4(self._read("clips", negative)["video"])[0])
        pictures = [_fitted(tile) for tile in tiles]
        tall = max(picture.shape[0] for picture in pictures)
        page = _page(tall + 44, 6)
        for number, picture in enumerate(pictures):
            left = MARGIN + number * (SIDE + MARGIN)
            page[: picture.shape[0], left : left + picture.shape[1]] = picture
        about = f"{row.clip_id}   {row.split}   {row.frames} frames"
        where = f"person {row.person}   scene {row.scene}"
        said = clip["caption"].decode()
        _write(page, f'{where}   "{said}"', MARGIN, tall + 15, INK)
        _write(page, about + _measured(clip["quality"]), MARGIN, tall + 32, FAINT)
        named = self.rows[other].scene if other != index else "the clip itself"
        _write(page, named, MARGIN + 4 * (SIDE + MARGIN), tall + 15, INK)
        if len(pictures) > 5:
            person_there = self.rows[negative].person
            _write(page, person_there, MARGIN + 5 * (SIDE + MARGIN), tall + 15, INK)
        return page

    def play(self, index: int, path: Path) -> None:
        """A clip with everything drawn over it, and its sound."""
        row, clip = self.rows[index], self._read("clips", index)
        frames, person = media.decode_mp4(clip["video"]), self._person(clip, row)
        tokens = self._tokens(clip, index)
        scale = max(1, round(SHOWN / min(frames.shape[1:3])))
        out = []
        for number, frame in enumerate(frames):
            shown = tokens[min(number // 4, len(tokens) - 1)]
            large = _drawn(frame, clip["face_boxes"][number], person, shown, scale)
            out.append(large)
        wave = clip["wave"].astype(np.float32) / 32767
        rate = round(len(wave) * FPS / len(frames))
        video_files.write_video(path, np.stack(out), FPS, wave, rate)

    def _read(self, name: str, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return self._opened[name, row.split][row.record]

    def _tokens(self, clip: dict[str, Any], index: int) -> ndarray:
        """Face tokens of a clip as a reference: those stored, where any are."""
        row = self.rows[index]
        if ("encoded", row.split) in self._opened:
            return self._read("encoded", index)["reference_tokens"]
        return conditions.face_tokens(clip["face_boxes"], row.size)

    def _person(self, clip: dict[str, Any], row: Row) -> ndarray:
        return conditions.still_mask(clip["person_box"], row.size)

    def _reference(self, index: int) -> int:
        """A partner in another scene; without one the clip itself."""
        others = self._pairs[self.rows[index].split].cross_scene(index)
        return others[index % len(others)] if others else index

    def _as_reference(self, index: int) -> ndarray:
        """The middle frame of a clip with its face tokens."""
        clip = self._read("clips", index)
        tokens = self._tokens(clip, index)
        frame = media.decode_mp4(clip["video"])[4 * (len(tokens) // 2)]
        return _drawn(frame, None, None, tokens[len(tokens) // 2])


def _nobody(row: Row) -> Row:
    """A row of another split: it must not be anybody's partner."""
    return row._replace(person=f"{row.split}:{row.person}")


def _drawn(
    frame: ndarray,
    box: ndarray | None,
    person: ndarray | None,
    tokens: ndarray | None,
    scale: int = 0,
) -> ndarray:
    """A frame, enlarged, with the face box, the person's region and face tokens."""
    scale = scale or max(1, round(SIDE / max(frame.shape[:2])))
    rows, columns = (side * scale for side in frame.shape[:2])
    kind = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    image = cv2.resize(frame, (columns, rows), interpolation=kind)
    line = max(1, round(min(rows, columns) / 200))
    for mask, colour in ((person, PERSON), (tokens, TOKENS)):
        if mask is None or not mask.any():
            continue
        grown = mask.astype(np.uint8).repeat(rows // len(mask), axis=0)
        grown = grown.repeat(columns // mask.shape[1], axis=1)
        tint = np.uint8((1 - TINT) * image + TINT * np.array(colour))
        image = np.where(grown[..., None] > 0, tint, image)
        edges, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        image = cv2.drawContours(np.ascontiguousarray(image), edges, -1, colour, line)
    if box is not None and box.any():
        left, top, right, bottom = np.rint(
            np.asarray(box) * [columns, rows, columns, rows]
        ).astype(int)
        image = np.ascontiguousarray(image)
        cv2.rectangle(image, (left, top), (right, bottom), FACE, line)
    return image


def _fitted(picture: ndarray) -> ndarray:
    scale = SIDE / max(picture.shape[:2])
    size = tuple(round(side * scale) for side in picture.shape[1::-1])
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(picture, size, interpolation=kind)


def _page(height: int, columns: int) -> ndarray:
    page = np.empty((height, MARGIN + columns * (SIDE + MARGIN), 3), np.uint8)
    page[:] = PAPER
    return page


def _write(page: ndarray, text: str, x: int, y: int, colour: tuple) -> None:
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(page, text, (x, y), font, 0.42, colour, 1, cv2.LINE_AA)


def _measured(quality: bytes) -> str:
    numbers = json.loads(quality or b"{}")
    told = [f"{k} {v:.3g}" for k, v in numbers.items() if isinstance(v, int | float)]
    return "   " + "  ".join(told) if told else ""


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
