"""Every field of every section, once, with its comment. Values are the official ones
where TAVR publishes them; the rest is our recipe and marked (ours).

A section is handed whole to the thing it configures: `TransformerConfig(**c.model)`.
The field is the constructor argument of the same name; code has no second default.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The full-size configuration every other config starts from."""
    c = ConfigDict()
    c.name = "base"  # goes into checkpoints, reports and video metadata
    c.stage = "same_scene"  # which step: see launch/stages.py
    c.seed = 42  # official sampling seed; also seeds data order and training noise
    # What to start from: a workdir or its checkpoint, or published weights of TAVR or
    # of Wan 2.1 text-to-video, by path or by name on the hub; "mini:STAGE" of
    # the package; "" = scratch.
    c.init_from = ""
    c.model = model()
    c.chunks = chunks()
    c.codec = codec()
    c.speech = speech()
    c.wav2vec = wav2vec()
    c.text = text()
    c.face = face()
    c.lipsync = lipsync()
    c.networks = networks()
    c.prepare = prepare()
    c.data = data()
    c.flow = flow()
    c.sampler = sampler()
    c.output = output()
    c.policy = policy()
    c.optimizer = optimizer()
    c.lora = lora()
    c.train = train()
    c.optimizer.schedule_steps = c.train.get_ref("steps")  # as long as the run
    c.parallel = parallel()
    c.evaluation = evaluation()
    return c


def model() -> ConfigDict:
    """The transformer: official sizes (TAVR 18.9 B)."""
    c = ConfigDict()
    c.dim = 5120  # D, width
    c.ffn_dim = 13824  # inner width of the feed-forward
    c.num_heads = 40  # K
    c.num_layers = 40
    c.freq_dim = 256  # features of the timestep
    c.text_dim = 4096  # E, umT5-xxl
    c.text_len = 512  # L: captions are zero-padded to it and never masked
    c.audio_dim = 8192  # U: 4 wav2vec layers x 1024 x 2 steps of 50 Hz
    c.videoref_audio_dim = 2048  # V: last wav2vec layer x 2 steps
    c.adapter_dim = 256  # inner width of the reference audio's adapters
    c.in_channels = 18  # C latent channels + reference mask + motion mask
    c.out_dim = 16  # C
    # s of each channel, where the head gives only what the noisy latents do not tell,
    # preconditioning.py (ours); none = it gives the velocity (official)
    c.latents_deviation = ()
    c.patch_size = (1, 2, 2)
    c.rope_spatial_stride = 1.5  # row and column positions are multiplied by it
    c.videoref_rope_offset = 256  # temporal position of the first reference latent
    c.eps = 1e-6  # every norm but the adapters'
    c.adapter_norm_eps = 1e-5
    c.audio_window = 12  # driving-audio tokens a video latent reads
    c.audio_per_latent = 4
    c.num_video_latents = 21  # T: a chunk is 4(T-1)+1 = 81 frames
    c.num_ref = 1  # ref-row slots
    c.num_videoref_latents = 5  # R: 20 reference frames
    # static room in training for packed tokens of the ref row (0 = all h*w) and of the
    # reference (M; 0 = all); generating has room for all
    c.still_bucket = 0
    c.reference_bucket = 0
    # what reference tokens read of each other: global (official) | frame: those of
    # their own latent | window: those of reference_window latents on either side too.
    # With the last two a longer reference costs as much more as it is longer, not the
    # square (Avatar V's idea; ours), but for its sound, whose scores are few and dense;
    # a latent has reference_bucket / R places
    c.reference_attention = "global"
    c.reference_window = 1
    # kernel of softmax attention: auto (by the devices) | chunked (any device) |
    # splash (TPU; interpreted on a CPU, slowly) | cudnn (GPU, 16-bit dtype)
    c.attention = "auto"
    c.dtype = "bfloat16"  # of matrix products; the residual stream is float32
    # What the backward pass computes again of a block: none | full: all of it |
    # attention: all but self-attention, whose output is kept (cudnn: full) | offload:
    # as attention, and the inputs of blocks wait in the host's memory
    c.remat = "full"
    return c


def chunks() -> ConfigDict:
    """Long video (TAVR_SPEC 12.5)."""
    c = ConfigDict()
    c.motion_latents = 2  # P: clean latents a continuation chunk starts from
    c.canvas_tail = 4  # latents of noise after the end, decoded last and cut off
    return c


def codec() -> ConfigDict:
    """Wan 2.1 video autoencoder: official sizes and statistics."""
    c = ConfigDict()
    c.base_dim = 96  # channels of the first level
    c.z_dim = 16  # C
    # cosine coefficients that stand for 4 x 8 x 8 pixels, vae_transform.py; 0 = pixels
    c.cosines = 0  # (ours)
    c.dim_mult = (1, 2, 4, 4)
    c.num_res_blocks = 2  # of each encoder level; the decoder has one more
    c.temporal_downsample = (False, True, True)
    # latents are (mean - latents_mean) / latents_std
    c.latents_mean = (
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    )  # fmt: skip
    c.latents_std = (
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    )  # fmt: skip
    c.reference_prefix = 25  # copies of frame 0 before a reference is encoded
    # training of stage "codec" (ours)
    c.crop = 64  # pixels of its random square crops; at most the bucket's size
    c.edge_weight = 1.0  # of the error of image gradients, beside that of pixels
    c.latent_weight = 0.1  # pulls every latent channel to mean 0, deviation 1
    c.latent_noise = 0.05  # put on latents before decoding: diffusion will err too
    return c


def speech() -> ConfigDict:
    """Log-mel rows: what lip-sync is scored on, and the mini world's features (ours)"""
    c = ConfigDict()
    c.sample_rate = 16000  # Hz, mono, of everything heard
    c.fps = 25  # rows a second, and the frame rate of everything
    c.mel_bins = 32  # bins of one 10 ms mel step (ours)
    c.mel_fmax = 7600  # Hz (ours)
    return c


def wav2vec() -> ConfigDict:
    """Rows of a published wav2vec 2.0 network (TAVR_SPEC 3 and 4)."""
    c = ConfigDict()
    c.states = (0, 8, 16, 24)  # hidden states side by side in a driving row
    return c


def text() -> ConfigDict:
    """Captions."""
    c = ConfigDict()
    c.dim = 4096  # E
    c.length = 512  # L
    c.dtype = "bfloat16"  # of umT5's products, as released
    c.negative = (  # prompt to steer away from; the mini world has none
        "Worst quality, low quality, blurry details, unclear details, poorly drawn "
        "face, blurry eyes, unclear eyes, poorly drawn hands, blurry hands, fat hands, "
        "swollen hands, extra fingers, fused fingers, deformed fingers, fat fingers, "
        "swollen fingers, missing limbs, malformed limbs, three legs, Moire pattern, "
        "stitching artifacts, stitching beard. "
    )
    return c


def face() -> ConfigDict:
    """Face network for identity rewards and scores (ours)."""
    c = ConfigDict()
    c.size = 48  # Y = X of its input crops
    c.width = 32  # channels of its first stage
    c.embedding_dim = 128  # Z
    c.temperature = 0.1  # of its contrastive loss
    return c


def lipsync() -> ConfigDict:
    """SyncNet-like network: a few face crops against the speech under them (ours)."""
    c = ConfigDict()
    c.size = 48  # Y = X of its input crops
    c.frames = 5  # window
    c.span = 17  # frames of a training sample: its windows are told apart in time
    c.width = 16
    c.audio_dim = 128  # U of a log-mel row: 4 * speech.mel_bins
    c.embedding_dim = 128  # Z
    c.max_shift = 15  # frames searched either way for the best offset
    c.temperature = 0.1  # of its contrastive loss
    return c


def networks() -> ConfigDict:
    """Where the frozen networks come from.

    A path; or OWNER/NAME or OWNER/NAME:FILE on the Hugging Face hub; or "mini", the
    mini world's own, inside the package.
    """
    c = ConfigDict()
    c.codec = "Wan-AI/Wan2.1-T2V-14B:Wan2.1_VAE.pth"  # video autoencoder
    c.text = "Wan-AI/Wan2.1-T2V-14B:models_t5_umt5-xxl-enc-bf16.pth"  # umT5
    c.tokenizer = "Wan-AI/Wan2.1-T2V-14B:google/umt5-xxl/spiece.model"  # of umT5
    c.speech = "facebook/wav2vec2-xlsr-53-espeak-cv-ft"  # wav2vec 2.0
    c.face = "mini"  # reward
    c.lipsync = "mini"
    c.identity = ""  # ONNX face network that clusters people; "" = networks.face
    c.face_detector = ""  # ONNX file (DWPose, UltraFace); "" = MTCNN, in the package
    c.person_detector = ""  # ONNX file (YOLO); "" = grown from the face (ours)
    return c


def prepare() -> ConfigDict:
    """From footage to records (ours, but for the bucket sizes)."""
    c = ConfigDict()
    c.landscape = (480, 896)  # bucket (rows, columns) for height <= width
    c.portrait = (896, 480)
    c.released_colours = True  # read files as BT.601, limited range, whatever they say
    c.clip_frames = 321  # longest clip; longer footage is cut into several
    c.min_frames = 81  # shorter footage is rejected: one chunk must fit
    c.detect_every = 5  # frames between two looks at the face; boxes are interpolated
    # Frames between two searches of whole pictures, for newcomers; with a face in view
    # three times as many: it is followed in between.
    c.search_every = 25
    c.shot_cut = 0.35  # jump of the colour histogram that starts a new shot
    # Filters. Measured on 12 clips of GRID and HDTF and on drawn people, all kept.
    c.min_loudness = -50.0  # dBFS: quieter than this is no speech; clips have -32..-12
    c.min_speech = 0.15  # share of time with speech; clips have 0.34..0.73, noise 0
    c.min_coverage = 0.8  # share of sampled frames with a face: turning away is rare
    c.max_faces = 1  # one speaker at a time
    c.min_visible = 0.75  # share of the face box that the crop to the bucket leaves
    c.min_face = 0.06  # face height / frame height: smaller shows too little identity
    c.min_sharpness = 0.15  # of the face: clips have 0.25..1.2, out of focus 0.08..0.14
    c.min_brightness = 0.08  # mean luma of the face, of 1: below nothing can be learned
    c.max_brightness = 0.95  # above the face is burnt out
    c.min_motion = 0.0005  # change of the face from frame to frame: a still has 0
    c.max_shake = 8.0  # face heights/s that it moves: above, blur or a wrong face
    c.min_sync = 0.0  # of lips and sound, 0..1; 0 = off: the measure is weak (voice.py)
    c.identity_faces = 8  # J: crops kept of each clip for identity pools
    c.crf = 12  # quality of stored frames; 0 = lossless, 51 = worst
    c.held_out = 0.0  # share of people kept out of training (0 = none)
    c.cluster_people = False  # who is who by face where no name says; networks.identity
    c.same_person = 0.45  # cosine of clips of one person: MobileFaceNet has 0.57, 0.28
    c.same_scene = 0.35  # largest distance of scene signatures inside a scene, of 1
    c.negatives = 4  # hard negatives kept of each clip: the most similar other people
    c.exclude = ()  # benchmark files (JSON): footage that they name is left out
    c.caption = "a person is talking"  # of videos without a caption beside them
    c.encode = True  # store latents and features; False: launch.train makes them
    c.records_per_shard = 256  # clips in one ArrayRecord file
    c.workers = 0  # videos worked on at once, one process each; 0 = one a core
    c.worker_memory = 8.0  # GiB of one such process; a video that needs more is refused
    c.video_timeout = 3600.0  # seconds for one video; a longer one is refused
    return c


def data() -> ConfigDict:
    """What the loader yields."""
    c = ConfigDict()
    c.path = ""  # dataset of launch.prepare_data; or several: A:0.7,B:0.3 (weights)
    c.orientation = "landscape"  # which bucket this run trains on
    c.split = "train"
    c.batch_size = 64  # of all hosts together
    # who may refer to whom: same_scene | cross_scene, or same_scene:0.3,cross_scene:0.7
    c.pairs = "same_scene"  # (ours)
    c.curriculum = 0  # samples over which pairs go from the first kind to all (ours)
    c.per_person = 0  # most targets of one person in an epoch; 0 = no limit (ours)
    c.reference_latents = (3, 12)  # shortest, longest drawn (paper); 0 = model's R
    c.continuation = 0.5  # share of samples that continue a previous chunk (ours)
    c.frames = 9  # 1 + 4k frames of a sample of the codec stage
    c.workers = 0  # Grain worker processes; 0 = threads only
    c.threads = 8  # that read records ahead, in each process
    c.prefetch = 16  # samples read ahead by them
    c.encoded_cache = 64  # clips kept, of a dataset that is encoded while training
    return c


def flow() -> ConfigDict:
    """Flow matching in training (ours, but for the shift)."""
    c = ConfigDict()
    c.shift = 5.0  # official: s*u/(1+(s-1)u)
    c.num_train_timesteps = 1000
    c.density = "uniform"  # of u before the shift: uniform | logit_normal
    c.density_mean = 0.0  # of logit_normal: above 0, more noise
    c.density_std = 1.0
    c.face_weight = 1.0  # of an error in the face box; outside of it 1
    c.lips_weight = 1.0  # of one in its lower half, where the mouth is
    c.motion_noise = 0.1  # largest noise level put on motion latents, against drift
    c.drop_audio = 0.1  # share of samples that see the learned nulls instead
    c.drop_text = 0.1  # share that see the empty caption
    c.drop_reference = 0.05  # share without any valid reference token
    c.drop_still = 0.0  # share without any valid ref-row token
    return c


def sampler() -> ConfigDict:
    """Official inference settings."""
    c = ConfigDict()
    c.steps = 24  # network evaluations, times the guidance branches
    c.shift = 5.0  # of the noise schedule
    c.text_scale = 5.0  # 1 = no guidance by the caption
    c.audio_scale = 1.8  # 1 = no guidance by the speech
    c.start_use_videoref_step = 0  # steps before it see no reference; < 0 = all
    c.round_bf16 = True  # round the state to bfloat16 after every step, as released
    # guidance branches: one_by_one | batched (rows of one call, split over data and
    # fsdp) | auto: batched on several devices
    c.branches = "auto"
    return c


def output() -> ConfigDict:
    """The generated video."""
    c = ConfigDict()
    c.crf = 18  # quality of its h264 stream, as released
    c.decode_dtype = "float32"  # of the decoder; the release's is float16
    c.decode_latents = 1  # decoded, or encoded, in one piece: more is faster and larger
    c.exact_release = False  # fail and cut where the release does (README, Generate)
    return c


def policy() -> ConfigDict:
    """Stage 3, policy gradient (ours: TAVR does not publish its algorithm)."""
    c = ConfigDict()
    c.algorithm = "grpo"  # grpo (rl/grpo.py) | nft (rl/nft.py)
    c.group_size = 8  # G rollouts of one sample, one initial noise
    c.steps = 16  # S of a rollout
    c.shift = 5.0
    c.audio_scale = 1.0  # guidance inside rollouts; 1 = conditional only
    c.text_scale = 1.0  # the same for the caption
    c.updates = 2  # gradient steps on the same rollouts
    c.kl_weight = 0.004  # pull to the policy it started from; 0 = none
    c.advantage_clip = 5.0  # limit of advantages, in standard deviations
    # grpo
    c.sde = "flow"  # stochastic step: flow | dance | cps
    c.eta = 0.7  # noise scale of the stochastic step
    c.stochastic_steps = 1  # steps with noise and gradient; the rest is the ODE
    c.window = 0.4  # they are drawn from this first share of the steps
    c.clip_range = 1e-3  # ratios beyond 1 +- this push no further
    c.ratio_norm = True  # ratios without the bias and scale of their noise level
    # nft
    c.nft_beta = 1.0  # how far the good and the bad policy lie from the old one
    # rewards; those of weight 0 are still measured
    c.reward_latents = 3  # latents decoded for rewards
    c.identity_weight = 1.0  # of the face reward
    c.lipsync_weight = 0.2  # of the lip-sync reward
    c.sharpness_weight = 0.0  # of the detail of the face
    c.motion_weight = 0.1  # of how much the face moves
    c.light_weight = 0.0  # of light, colour and contrast of the whole frame
    # guard against reward hacking
    c.guard_window = 20  # steps over which it averages
    # Stop when motion or lip-sync fell by this share while identity rose; 0 = never.
    c.guard_fall = 0.3
    return c


def optimizer() -> ConfigDict:
    """AdamW (ours)."""
    c = ConfigDict()
    # What is trained: all | new (what TAVR adds to Wan) | attention | lora, or regular
    # expressions of parameter names, comma-separated. The rest is frozen.
    c.trainable = "all"
    c.learning_rate = 1e-5  # after the warm-up
    c.warmup_steps = 500  # the rate grows linearly over them
    c.schedule = "constant"  # after the warm-up: constant | linear | cosine
    c.schedule_steps = 10000  # end of linear and cosine; follows train.steps
    c.final_rate = 0.1  # what they end at, as a share of learning_rate
    c.weight_decay = 0.01  # of kernels; nothing else decays
    c.b1 = 0.9  # decay of the first moment
    c.b2 = 0.95  # decay of the second moment
    c.clip_norm = 1.0  # of the global gradient
    c.accumulate = 1  # parts a batch is cut into; their gradients are averaged
    c.ema_decay = 0.999  # of the weights that sampling uses; 0 = none
    c.ema_ramp = 0.0  # the decay grows by this a step up to ema_decay; 0 = at once
    return c


def lora() -> ConfigDict:
    """Low-rank additions, where optimizer.trainable is lora (ours)."""
    c = ConfigDict()
    c.rank = 64  # columns of A, rows of B
    c.alpha = 64.0  # the addition is alpha / rank x A B
    # regular expression of the layers that have one
    c.layers = r"blocks/(self_attn|cross_attn|audio_attn|ffn)/(q|k|v|o|up|down)"
    return c


def train() -> ConfigDict:
    """The loop."""
    c = ConfigDict()
    c.steps = 10000  # of the whole run
    c.log_every = 10  # steps between two lines of metrics
    c.sample_every = 1000  # pictures, video and sound to TensorBoard; 0 = never
    c.evaluate_every = 500  # loss or reward of held-out pairs; 0 = never
    c.evaluate_batches = 4  # of data.batch_size pairs each, always the same ones
    c.checkpoint_every = 500  # steps between two checkpoints; the last is always one
    c.keep = 3  # newest checkpoints kept
    c.keep_every = 0  # checkpoints of multiples of this step stay for good; 0 = none
    c.max_skipped = 20  # stop after so many updates in a row that were not finite
    # first step of a trace for XProf in WORKDIR/profile; 0 = none, 1 traces compiling
    c.profile_from = 0
    c.profile_steps = 3  # of that trace; it is large, and the last step waits for it
    return c


def parallel() -> ConfigDict:
    """Devices along each mesh axis; one of them may be -1 = all that remain."""
    c = ConfigDict()
    c.data = 1  # copies of the parameters
    c.fsdp = -1  # parameters and batch are split over it
    c.context = 1  # tokens of one sample are split over it
    c.tensor = 1  # heads of one layer are split over it
    return c


def evaluation() -> ConfigDict:
    """Held-out scoring (ours)."""
    c = ConfigDict()
    c.pairs = 158  # cross-scene pairs scored
    c.frames = 0  # longest video made of a pair; 0 = as long as its clip
    # Face network that scores; "mini" is another one than that of networks.face.
    c.face = "mini"
    c.level = 0.95  # of intervals, a share between 0 and 1
    c.shown = 24  # samples whose videos the page carries: the worst and the best
    c.failures = failures()
    return c


def failures() -> ConfigDict:
    """From where on a video is tagged as a failure (ours)."""
    c = ConfigDict()
    # of the autoencoder's copy where that is scored, else of the real video
    c.wrong_person = 0.5  # less than this share of its identity
    c.frozen = 0.2  # less than this share of its face's motion
    c.out_of_sync = 5.0  # more frames than this from the real video's offset
    c.blurred = 0.3  # less than this share of that face's sharpness
    c.flicker = 2.0  # more grey levels than this above the real scene's
    c.drift = 10.0  # further than this from the first seconds' colour, CIE 1976
    c.seam = 4.0  # more than this many times the usual change where chunks join
    c.copied = 0.3  # follows the reference's mouth by more than this above chance
    c.copied_p = 0.05  # and would by chance in less than this share of cases
    return c
