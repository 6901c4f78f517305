"""Small parts of the released rules' recorded arrays, for machines without the oracles.

python tests/golden/make_media.py SHARED/oracles/tavr_seed0
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent / "media"
# array -> step through its first axis
MASKS = {
    "face_small_kp": 1,
    "face_small_boxes": 1,
    "face_small_tokens": 1,
    "person_cases": 1,
    "person_fg_28": 1,
    "person_bg_tokens_28": 1,
    "person_fg_42": 1,
    "person_bg_tokens_42": 1,
    "multi_raw": 1,
    "multi_out": 1,
    "dwcrop_cases": 1,
    "dwcrop_frame": 1,
    "dwcrop_geo": 1,
    "dwcrop_window": 1,
    "simcc_x": 1,
    "simcc_y": 1,
    "simcc_window": 1,
    "simcc_points": 1,
}
REFERENCE = {
    "window": 13,
    "bucket_in": 1,
    "bucket_out": 1,
    "cover": 3,
    "count": 1,
    "crop": 1,
    "union_kp": 1,
    "union_box": 1,
    "still_c_in": 1,
    "still_c_out": 1,
    "frames_c_out": 1,
    "uyvy_in": 1,
    "uyvy_rgb": 1,
    "uint8_in": 1,
    "uint8_out": 1,
    "ceiling_in": 1,
    "ceiling_out": 1,
}


def main(folder: Path) -> None:
    """Write both files."""
    for name, parts in (("masks", MASKS), ("reference", REFERENCE)):
        with np.load(folder / f"{name}.npz", allow_pickle=False) as source:
            chosen = {key: source[key][::step] for key, step in parts.items()}
        np.savez_compressed(HERE / f"{name}.npz", **chosen)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
