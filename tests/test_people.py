import cv2
import numpy as np

from data_pipelines import media, people


def boxes(*rows):
    return np.float32(rows).reshape(-1, 4)


FACE = [0.4, 0.3, 0.6, 0.7]


def test_boxes_are_interpolated_between_detections_and_held_at_the_ends():
    moved = [0.5, 0.3, 0.7, 0.7]
    track = people.link_faces([boxes(), boxes(FACE), boxes(), boxes(moved)], 4, 16)
    np.testing.assert_array_equal(track.boxes[:5], np.tile(np.float32(FACE), (5, 1)))
    np.testing.assert_allclose(
        track.boxes[8], np.mean([FACE, moved], axis=0), rtol=1e-6
    )
    np.testing.assert_array_equal(track.boxes[12:], np.tile(np.float32(moved), (4, 1)))
    assert track.coverage == 0.5 and track.faces == 1


def test_the_track_stays_with_its_person_and_counts_the_others():
    near = [0.41, 0.31, 0.61, 0.71]
    rival, passer_by = [0.0, 0.2, 0.3, 0.9], [0.9, 0.1, 0.95, 0.2]
    track = people.link_faces(
        [boxes(FACE), boxes(rival, near), boxes(passer_by, near)], 1, 3
    )
    np.testing.assert_array_equal(track.boxes[1:], boxes(near, near))
    assert track.faces == 2


def test_no_face_is_an_empty_track():
    noise = np.random.default_rng(0).integers(0, 256, (6, 120, 160, 3), np.uint8)
    track = people.track_faces(noise, 5)
    assert track.coverage == 0.0 and track.faces == 0
    assert track.boxes.shape == (6, 4) and not track.boxes.any()


def test_crops_follow_the_face_to_fractions_of_a_pixel():
    """A crop shows the same thing wherever the face is."""
    size, frames, tracks = 96, [], []
    for shift in np.linspace(-55, 55, 23):
        rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
        blob = np.exp(-((columns - shift) ** 2 + rows**2) / (2 * 9.0**2))
        frames.append((255 * blob).astype(np.uint8))
        centre = (size / 2 + shift) / size
        tracks.append([centre - 0.2, 0.3, centre + 0.2, 0.7])
    video = np.stack(frames)[..., None].repeat(3, axis=-1)
    crops = people.crop_faces(video, np.float32(tracks), 24, len(video))
    inside = crops[7:-7].astype(int)  # here the 48 pixels cropped lie in the frame
    assert np.abs(inside - inside[0]).max() <= 4
    grid = np.arange(24) - 11.5
    weights = inside[..., 0].sum(axis=1) / inside[..., 0].sum(axis=(1, 2))[:, None]
    np.testing.assert_allclose(weights @ grid, 0.0, atol=0.05)


def test_real_footage_shows_one_face_throughout(shared):
    for name in ("grid-A_bbaf2n.mpg", "RD-Radio10_0.mp4"):
        frames = media.read_frames(shared / "media/videos" / name, 25, limit=30)
        track = people.track_faces(frames, 5)
        assert track.coverage == 1.0 and track.faces == 1
        width, height = (track.boxes[:, 2:] - track.boxes[:, :2]).mean(axis=0)
        assert 0.2 < width < 0.5 and 0.3 < height < 0.7
        # the same face found at another size and place
        half = np.stack([cv2.resize(f, None, fx=0.5, fy=0.5) for f in frames[::5]])
        padded = np.pad(half, [(0, 0), (0, 0), (0, half.shape[2]), (0, 0)])
        moved = people.track_faces(padded, 1).boxes * np.float32([2, 1, 2, 1])
        assert np.abs(moved - track.boxes[::5]).max() < 0.06
