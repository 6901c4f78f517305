"""A reference's sound as the release hears it: through an mp3. [TAVR_SPEC 4]

ffmpeg cuts the first `seconds` of the sound track out as an mp3 at the encoder's own
bit rate (16 kHz mono: 24 kbit/s) before anything listens to it. At such rates the
features change by a fifth of their size, so activations of the release are only met
with the detour. Everything else should hear the track itself (`media.read_audio`).

Not repeated: the release re-encodes footage of other rates than 25 fps, and with it the
sound (aac), before this.
"""

import io
from collections.abc import Iterator
from itertools import chain

import av
import numpy as np
from jaxtyping import Float

from data_pipelines import containers, media
from tavr_jax.errors import InputError

RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # of mp3


def read_as_released(path, seconds: float, sample_rate: int) -> Float[np.ndarray, " n"]:
    """The first `seconds` of a file's sound, mono, with the losses of an mp3.

    InputError: missing, unreadable or damaged file, no sound track, an empty one.
    """
    return media.read_audio(path, sample_rate, _mp3(path, seconds))


def _mp3(path, seconds: float) -> bytes:
    target = io.BytesIO()
    with containers.opened(path) as container:
        stream = containers.sound_stream(path, container)
        context = stream.codec_context
        rate = min(RATES, key=lambda known: abs(known - (context.sample_rate or 0)))
        layout = "mono" if context.channels == 1 else "stereo"
        shape = av.AudioResampler(format="fltp", layout=layout, rate=rate)
        with av.open(target, "w", format="mp3") as output:
            encoder = output.add_stream("libmp3lame", rate=rate, layout=layout)
            for frame in _pieces(path, container, stream, shape, round(seconds * rate)):
                output.mux(encoder.encode(frame))
            output.mux(encoder.encode(None))
    return target.getvalue()


def _pieces(path, container, stream, shape, limit: int) -> Iterator[av.AudioFrame]:
    """Decoded sound, end to end, up to `limit` samples."""
    done = 0
    for frame in chain(container.decode(stream), [None]):
        try:
            resampled = shape.resample(frame)
        except ValueError as error:  # damage makes a frame of another kind
            raise InputError(
                f"{path}: the sound changes its format on the way; re-encode the file"
            ) from error
        for piece in resampled:
            samples = piece.to_ndarray()[:, : limit - done]
            if samples.shape[1]:
                cut = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(samples), "fltp", piece.layout.name
                )
                cut.sample_rate, cut.pts = piece.sample_rate, done
                done += samples.shape[1]
                yield cut
        if done >= limit:
            return
