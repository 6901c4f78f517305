"""The per-video stage on many machines or on one: composed, not written, here.

    videos -> Reshuffle -> prepare each (child processes) -> results in the work folder

`each_video` is the stage over some videos, with one child process a core. On this
machine it is called directly. With a Beam runner (DirectRunner, DataflowRunner,
FlinkRunner, SparkRunner ...) the same function does each bundle on whatever machine
Beam gives it to. Footage comes from a path that all machines see, or from a bucket;
results travel through `exchange`, a folder or bucket that all see (remote.py).
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipelines.prepare import remote, store, workers
from data_pipelines.prepare.clips import ClipSettings
from data_pipelines.prepare.importers import Video
from tavr_jax.errors import InputError


class Runner(NamedTuple):
    """Where the per-video work is done."""

    beam: Sequence[str] = ()  # Beam's options; none: child processes of this machine
    exchange: str = ""  # folder or bucket that Beam's machines write to
    bucket: str = ""  # where footage is fetched from; the source is its listing


def each_video(
    videos: Iterable[Video], settings: ClipSettings, folder: Path, origin: tuple = ()
) -> Iterator[Video]:
    """Prepare videos into `folder`, each in a child process; yields those done.

    `origin` is a bucket and the folder it was listed into, for footage that is there.
    A video that kills its process is left out with the reason. OSError: `folder`
    cannot be written.
    """
    prepare = settings.prepare
    function = remote.prepare_video if origin else store.prepare_video
    jobs = [(video, settings, folder, *origin) for video in videos]
    count = prepare.workers or workers.cores()
    limits = workers.Limits(prepare.video_timeout, prepare.worker_memory)
    for job, result in workers.each(function, jobs, count, limits):
        if isinstance(result, workers.Failure):
            store.give_up(job[0], result.reason, result.detail, folder)
        yield job[0]


def run(
    videos: Sequence[Video],
    settings: ClipSettings,
    folder: Path,
    runner: Runner,
    listed: Path,
) -> None:
    """`each_video` by a Beam runner; the results end up in `folder`.

    InputError: Beam is not installed or refuses its options; the pipeline failed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise InputError(
            f"--beam: Apache Beam is not installed ({error}); pip install apache-beam, "
            "or leave --beam out to use this machine's cores"
        ) from error
    target = runner.exchange or str(folder)
    origin = (runner.bucket, listed) if runner.bucket else ()
    stage = _bundle_stage(beam)(settings, target, origin)
    try:
        with beam.Pipeline(options=PipelineOptions(list(runner.beam))) as pipeline:
            (
                pipeline
                | "videos" >> beam.Create(list(videos), reshuffle=False)
                | "spread" >> beam.Reshuffle()
                | "prepare" >> beam.ParDo(stage)
            )
    except (ValueError, RuntimeError, TypeError) as error:
        line = " ".join(str(error).split())[:300]
        raise InputError(
            f"--beam: the pipeline failed: {line}; see Beam's log above"
        ) from error
    if runner.exchange:
        remote.copy_results(runner.exchange, str(folder))


def _bundle_stage(beam):
    """The stage as Beam wants it; a class inside, for Beam is not always there."""

    class PrepareBundle(beam.DoFn):
        """Collects a bundle and prepares it with all cores of its machine."""

        def __init__(self, settings: ClipSettings, target: str, origin: tuple):
            self._settings, self._target, self._origin = settings, target, origin

        def start_bundle(self):
            self._videos = []

        def process(self, video: Video):
            self._videos.append(video)

        def finish_bundle(self):
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                done = each_video(self._videos, self._settings, folder, self._origin)
                for _ in done:
                    pass
                remote.copy_results(scratch, self._target)

    return PrepareBundle
