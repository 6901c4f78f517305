"""Sizes. `apply(config, size)` turns the official config into one of these."""

from ml_collections import ConfigDict


def apply(c: ConfigDict, size: str) -> ConfigDict:
    """Set every field that a size moves; the stage's recipe is left alone."""
    if size not in SIZES:
        raise ValueError(f"size {size!r}: expected one of {', '.join(SIZES)}")
    SIZES[size](c)
    c.name = f"{c.stage}:{size}"
    return c


def _tavr_14b(c: ConfigDict) -> None:
    """The official checkpoint: nothing to change."""


def _tavr_1p3b(c: ConfigDict) -> None:
    """Wan2.1-T2V-1.3B grown the same way (ours)."""
    c.model.dim, c.model.ffn_dim, c.model.num_heads = 1536, 8960, 12
    c.model.num_layers = 30


def _mini(c: ConfigDict) -> None:
    """96 x 96 pixels, 33-frame chunks: trains on a laptop's CPU."""
    m = c.model
    m.dim, m.ffn_dim, m.num_heads, m.num_layers = 160, 640, 2, 4
    m.freq_dim, m.adapter_dim = 128, 32
    m.text_dim = c.text.dim = 32
    m.text_len = c.text.length = 16
    m.audio_dim = m.videoref_audio_dim = 4 * c.speech.mel_bins
    m.num_video_latents, m.num_videoref_latents = 9, 5
    m.dtype, m.remat = "float32", "none"
    n = c.networks
    n.codec = n.text = n.tokenizer = n.speech = "mini"
    c.text.negative = ""
    c.output.decode_latents = 8
    c.codec.cosines, c.codec.base_dim, c.codec.num_res_blocks = 128, 48, 1
    c.codec.dim_mult, c.codec.temporal_downsample = (1,), ()
    c.codec.z_dim = m.out_dim = 24
    m.in_channels = 26  # with the two masks
    # Of the shipped codec on drawn people, but that channels do not end at deviation 1:
    # the coarse waves, most of a picture, keep most of theirs, 2 sqrt(s / s_0) of
    # vae_transform.py (4), and so outweigh the fine ones in the loss and the noise.
    c.codec.latents_mean = (
        -0.45, -0.06, 0.02, 0.16, -0.21, -0.02, 0.00, -0.08, -0.02, -0.13, 0.01, 0.00,
        0.00, 0.00, 0.08, -0.14, 0.03, 0.01, -0.01, 0.03, -0.04, -0.05, 0.01, -0.10,
    )  # fmt: skip
    c.codec.latents_std = (
        0.53, 0.75, 0.92, 0.93, 1.18, 1.24, 1.03, 1.34, 0.95, 1.02, 1.24, 1.16,
        1.24, 1.48, 1.38, 1.49, 1.28, 1.12, 1.31, 1.30, 1.27, 1.00, 0.93, 0.99,
    )  # fmt: skip
    m.latents_deviation = (
        2.00, 1.22, 1.07, 1.07, 1.02, 0.76, 0.76, 0.76, 0.65, 0.65, 0.61, 0.61,
        0.61, 0.61, 0.55, 0.55, 0.51, 0.51, 0.51, 0.51, 0.51, 0.46, 0.46, 0.46,
    )  # fmt: skip
    p = c.prepare
    p.landscape = p.portrait = (96, 96)
    p.clip_frames, p.min_frames = 81, 33
    p.released_colours = False  # drawn people are written as BT.709, and say so
    c.data.batch_size = 4
    c.data.reference_latents = (1, 0)
    c.flow.face_weight, c.flow.lips_weight = 2.0, 4.0
    c.sampler.steps, c.sampler.text_scale, c.sampler.audio_scale = 8, 1.0, 1.5
    # 9 latents of one face tell what it is like through much noise: decided early
    c.flow.shift = c.sampler.shift = c.policy.shift = 12.0
    c.policy.group_size, c.policy.steps = 4, 6
    c.policy.lipsync_weight = 0.0  # 9 decoded frames do not tell speech apart
    c.policy.guard_window = 10
    c.lora.rank, c.lora.alpha = 8, 8.0
    c.optimizer.warmup_steps, c.optimizer.learning_rate = 20, 1e-3
    c.optimizer.ema_decay = 0.98
    c.train.steps, c.train.log_every = 300, 10
    c.train.sample_every, c.train.checkpoint_every = 150, 100
    c.train.evaluate_every, c.train.evaluate_batches = 50, 2
    c.parallel.fsdp, c.parallel.data = 1, -1
    c.evaluation.pairs = 4


def _tiny(c: ConfigDict) -> None:
    """32 x 32 pixels, 17-frame chunks, nothing learned: for tests."""
    _mini(c)
    m = c.model
    m.dim, m.ffn_dim, m.num_heads, m.num_layers = 32, 64, 2, 2
    m.freq_dim, m.adapter_dim, m.text_len = 32, 8, 8
    c.text.length = 8
    m.num_video_latents, m.num_videoref_latents = 5, 2
    k = c.codec  # of the official layers, so that tests of this size are of them
    k.cosines, k.base_dim, k.num_res_blocks = 0, 4, 2
    k.dim_mult, k.temporal_downsample = (1, 2, 4, 4), (False, True, True)
    k.z_dim = m.out_dim = 16
    m.in_channels, m.latents_deviation = 18, ()
    k.latents_mean, k.latents_std = (0.0,) * 16, (1.0,) * 16
    c.networks.codec = c.networks.face = c.networks.lipsync = "random"
    c.evaluation.face = "random"
    p = c.prepare
    p.landscape = p.portrait = (32, 32)
    p.clip_frames, p.min_frames, p.identity_faces = 33, 17, 2
    c.face.size = c.lipsync.size = 16
    c.face.width = c.lipsync.width = 4
    c.face.embedding_dim = c.lipsync.embedding_dim = 16
    c.lipsync.max_shift = 3
    c.data.batch_size = 8
    c.data.reference_latents = (0, 0)
    c.flow.shift = c.sampler.shift = c.policy.shift = 5.0
    c.sampler.steps, c.policy.steps, c.policy.group_size = 2, 3, 2
    c.policy.reward_latents = 2
    c.train.steps, c.train.log_every = 2, 1
    c.train.sample_every, c.train.checkpoint_every = 0, 1
    c.train.evaluate_every = 0
    c.lora.rank, c.lora.alpha = 2, 2.0
    c.optimizer.warmup_steps = 1
    c.evaluation.pairs = 1


SIZES = {"tavr_14b": _tavr_14b, "tavr_1p3b": _tavr_1p3b, "mini": _mini, "tiny": _tiny}
