"""Latent actions of pictures that move as a robot does: the command finds that they carry it, and draws the page."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from experiments import latent_action
from motus_jax.data.lerobot_writer import LeRobotWriter
from motus_jax.errors import UserError
from motus_jax.evaluation import latents
from motus_jax.models.latent_system import LatentActionSystem
from motus_jax.training import inputs, loop

pytestmark = pytest.mark.thorough
SIZE, EPISODES, LENGTH = 32, 12, 40
NAMES = ("right", "down")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model trained on a camera that a two-axis robot moves over a texture."""
    folder, random = tmp_path_factory.mktemp("latents"), np.random.default_rng(0)
    soft = cv2.GaussianBlur(random.integers(0, 256, (240, 240, 3)).astype(np.float32), (0, 0), 2)
    canvas = np.clip((soft - 128) * 4 + 128, 0, 255).astype(np.uint8)
    facts = dict(fps=5, robot_type="test", cameras={"top": (SIZE, SIZE)}, state_names=NAMES, action_names=NAMES)
    with LeRobotWriter(folder / "set", crf=8, **facts) as writer:
        for _ in range(EPISODES):
            places = 104 + np.clip(np.cumsum(random.integers(-2, 3, (LENGTH + 1, 2)), 0), -100, 100)
            frames = np.stack([canvas[y : y + SIZE, x : x + SIZE] for x, y in places[:-1]])
            rows = places.astype(np.float32)
            writer.add_episode(state=rows[:-1], action=rows[1:], frames={"top": frames}, task="look around")
        writer.finish({"train": f"0:{EPISODES - 4}", "test": f"{EPISODES - 4}:{EPISODES}"})
    config = latent_action.get_config()
    config.update({"steps": 150, "log_every": 50, "validate_every": 0, "batch_size": 16})
    config.data.update({"path": str(folder / "set"), "cameras": ("top",), "image_size": (SIZE, SIZE)})
    config.model.flow_autoencoder.variant = "debug"
    config.model.latent_action.hidden = 32
    config.data.sources = config.data.layers = {}
    assert loop.train(config, folder / "run", LatentActionSystem, inputs.open_data)
    return folder / "run"


def test_figures_and_page(run, capsys):
    latents.main(["latents", f"--workdir={run}", "--pairs=280", "--held_out=140"])
    said, found = capsys.readouterr().out, json.loads((run / "latents" / "latents.json").read_text())
    assert found["pairs"] == {"train": 280, "test": 140} and found["episodes"] == 4 and found["dim"] == 14
    share = {name: row["value"] for name, row in found["explained"].items()}
    assert set(share) == {latents.LATENT, latents.TOKENS, latents.CELLS, latents.MEAN}
    assert share[latents.LATENT] > 0.6 and share[latents.MEAN] > 0.8, "the whole picture moves"
    assert found["informed"] and found["painted"]["own"]["value"] < found["painted"]["another's"]["value"]
    assert "latent action  explains" in said and f"{100 * share[latents.LATENT]:.1f} %" in said
    page = (run / "latents" / "index.html").read_text()
    for picture in ("pairs.png", "traversals.png", "real.png", "components.png"):
        assert f'src="{picture}"' in page
    shown = np.array(Image.open(run / "latents" / "traversals.png"))
    assert shown.shape == (14 * SIZE, len(latents.STEPS) * SIZE, 3) and shown.std() > 1
    assert Image.open(run / "latents" / "real.png").size == (2 * 56, 14 * 40)


def test_refusals(run, tmp_path):
    with pytest.raises(UserError, match="--pairs: expected at least 12, found 3"):
        latents.main(["latents", f"--workdir={run}", "--pairs=3"])
    with pytest.raises(UserError, match="no checkpoint in"):
        latents.main(["latents", f"--workdir={tmp_path}"])
