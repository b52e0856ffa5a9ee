"""How the ALOHA table looks: our own textures and colours, the same in all episodes, and light that varies a little.

The gym-aloha scene is plain grey, which leaves a video model little to see.
"""

import dataclasses

import numpy as np
from jaxtyping import UInt8

from motus_jax.robots.simulator import mujoco, package_folder

Texture = UInt8[np.ndarray, "S S 3"]

SIZE = 256
# The left arm cool, the right one warm, so that they can be told apart.
ARMS = {"vx300s_left": (0.34, 0.44, 0.60), "vx300s_right": (0.62, 0.46, 0.34)}
RING = np.linspace(0, 1, SIZE, endpoint=False)


def _mix(first: tuple[int, int, int], second: tuple[int, int, int], weight: np.ndarray) -> Texture:
    """Two colours blended by `weight` [S, S] in 0..1."""
    weight = np.clip(weight, 0, 1)[..., None]
    return ((1 - weight) * np.array(first) + weight * np.array(second)).round().astype(np.uint8)


def _waves(rng: np.random.Generator, terms: int, highest: int) -> np.ndarray:
    """Smooth periodic noise [S, S] of mean 0 and standard deviation 1."""
    y, x = np.meshgrid(RING, RING, indexing="ij")
    noise = np.zeros((SIZE, SIZE))
    for _ in range(terms):
        fy, fx = rng.integers(-highest, highest + 1, 2)
        noise += np.sin(2 * np.pi * (fy * y + fx * x + rng.random()))
    return (noise - noise.mean()) / noise.std()


def _wood(rng: np.random.Generator) -> Texture:
    """Planks along x with wavy grain; each plank has its own shade."""
    y, x = np.meshgrid(RING, RING, indexing="ij")
    plank = np.floor(y * 7).astype(int)
    shade = rng.uniform(0, 0.55, 7)[plank]
    shift = rng.random(7)[plank]
    grain = np.sin(2 * np.pi * (y * 42 + 0.35 * np.sin(2 * np.pi * (x + shift)) + 1.5 * shift))
    seam = (y * 7 % 1 < 0.06) | ((x + shift) % 0.5 < 0.008)
    return _mix((188, 134, 82), (110, 66, 36), shade + 0.16 * grain + 0.9 * seam)


def _floor(rng: np.random.Generator) -> Texture:
    return _mix((48, 60, 84), (84, 100, 124), 0.5 + 0.28 * _waves(rng, 12, 3))


@dataclasses.dataclass(frozen=True)
class Look:
    """The light of an episode: strengths of the three lamps and of the ambient light, 0..1."""

    lights: tuple[float, float, float]
    ambient: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Look":
        """Draws the light."""
        return cls(tuple(float(v) for v in rng.uniform(0.24, 0.28, 3)), float(rng.uniform(0.34, 0.36)))

    def apply(self, model: mujoco.MjModel) -> None:
        """Switches the model to this light; takes effect with the next picture."""
        model.light_diffuse[:] = np.array(self.lights)[:, None]
        model.vis.headlight.ambient[:] = self.ambient


def _paint(model: mujoco.MjModel) -> None:
    """Covers table and floor, and tints the arms, fingers darker."""
    for geom, material in (("table_top", "wood"), ("floor", "slate")):
        model.geom(geom).matid = model.material(material).id
    for geom in range(model.ngeom):
        name = model.geom(geom).name
        for prefix, colour in ARMS.items():
            if name.startswith(prefix):
                dark = 0.55 if "finger" in name or "gripper" in name else 1.0
                model.geom_rgba[geom, :3] = np.array(colour) * dark


def _add_material(spec: mujoco.MjSpec, name: str, image: Texture, repeat: tuple[float, float]) -> None:
    texture = spec.add_texture(name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, width=SIZE, height=SIZE, nchannel=3)
    texture.data = image.tobytes()
    material = spec.add_material(name=name, texrepeat=repeat, specular=0.1)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name


def _aim(model: mujoco.MjModel, camera: str, position: tuple, target: tuple, field_of_view: float) -> None:
    """Fixes a camera to its body at `position`, looking at `target` (both in the body's frame, m)."""
    forward = np.subtract(target, position)
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    index = model.camera(camera).id
    model.cam_mode[index] = mujoco.mjtCamLight.mjCAMLIGHT_FIXED
    model.cam_fovy[index] = field_of_view
    model.cam_pos[index] = position
    mujoco.mju_mat2Quat(model.cam_quat[index], np.stack([right, np.cross(right, forward), -forward], axis=1).ravel())


def _place_cameras(model: mujoco.MjModel) -> None:
    """The wheel's wrist cameras look at an arm's shoulder through a 20 degree lens; these look along the fingers.

    The top camera leans, so that lifting an object is visible, and frames the space that the hands use.
    """
    model.vis.map.znear = 0.02 / model.stat.extent
    _aim(model, "top", (0.0, 0.18, 0.74), (0.0, 0.58, 0.12), 47)
    for side in ("left", "right"):
        _aim(model, f"{side}_wrist", (0.02, 0.0, 0.09), (0.17, 0.0, 0.0), 75)


def build_model(layout: str) -> mujoco.MjModel:
    """Compiles a gym-aloha scene ("transfer_cube" or "insertion") with textures, floor and real wrist cameras.

    Raises:
      UserError: gym-aloha is not installed.
    """
    assets = package_folder("gym_aloha") / "assets"
    spec = mujoco.MjSpec.from_file(str(assets / f"bimanual_viperx_{layout}.xml"))
    _add_material(spec, "wood", _wood(np.random.default_rng(1)), (1, 1))
    _add_material(spec, "slate", _floor(np.random.default_rng(0)), (3, 3))
    plane = dict(type=mujoco.mjtGeom.mjGEOM_PLANE, contype=0, conaffinity=0)
    # Pictures only: contacts stay with the wheel's own table, half a millimetre lower.
    spec.worldbody.add_geom(name="table_top", size=[0.61, 0.381, 0.1], pos=[0, 0.6, 0.0005], **plane)
    spec.worldbody.add_geom(name="floor", size=[4, 4, 0.1], pos=[0, 0.6, -0.75], **plane)
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=[0.62, 0.70, 0.80],
        rgb2=[0.22, 0.26, 0.34],
        width=64,
        height=384,
    )
    model = spec.compile()
    model.vis.quality.offsamples = 0
    _paint(model)
    _place_cameras(model)
    return model
