"""Footage drawn for tests: people who move their mouths to a noise like speech."""

import cv2
import numpy as np

from data_pipelines import video_files

ROWS, COLUMNS = 120, 160
SKIN, DARK, LIPS = (220, 170, 140), (50, 35, 30), (170, 70, 70)


def draw_person(image, centre, height, mouth):
    """A face that the detector takes for one, four times as large as asked."""
    wide, tall = 0.74 * 4 * height, 4.0 * height
    x0, y0 = 4 * centre[0], 4 * centre[1]

    def blob(x, y, a, b, color):
        middle = (int(x0 + x * wide), int(y0 + y * tall))
        axes = (int(a * wide), int(b * tall))
        cv2.ellipse(image, middle, axes, 0, 0, 360, color, -1, cv2.LINE_AA)

    blob(0, 1.05, 1.1, 0.55, (40, 50, 90))
    blob(0, 0.5, 0.22, 0.25, (190, 140, 115))
    blob(0, -0.12, 0.58, 0.58, DARK)
    blob(0, 0, 0.5, 0.5, SKIN)
    for side in (-1, 1):
        blob(side * 0.22, -0.08, 0.1, 0.045, (240, 240, 240))
        blob(side * 0.22, -0.08, 0.045, 0.042, DARK)
        blob(side * 0.22, -0.2, 0.11, 0.016, DARK)
        blob(side * 0.05, 0.12, 0.02, 0.012, (120, 80, 70))
    blob(0, 0.27, 0.17, 0.03 + 0.05 * mouth, LIPS)
    blob(0, 0.27, 0.12, 0.005 + 0.04 * mouth, (70, 20, 20))


def footage(count, people=((80, 54, 54),), background=(90, 140, 120), size=None):
    """`count` frames of people (x, y, height) who open and close their mouths."""
    rows, columns = size or (ROWS, COLUMNS)
    frames = []
    for index in range(count):
        image = np.empty((rows * 4, columns * 4, 3), np.uint8)
        image[:] = background
        for x, y, height in people:
            draw_person(image, (x, y), height, (index % 8) / 8)
        image = cv2.GaussianBlur(image, (0, 0), 3)
        frames.append(cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA))
    return np.stack(frames)


def save(path, frames, loudness=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = None
    if loudness is not None:
        noise = np.random.default_rng(len(frames)).normal(size=len(frames) * 640)
        syllables = np.sin(np.arange(len(noise)) / 16000 * 2 * np.pi * 4) > 0
        wave = (loudness * noise * (syllables + 0.01)).astype(np.float32)
    video_files.write_video(path, frames, 25, wave)
