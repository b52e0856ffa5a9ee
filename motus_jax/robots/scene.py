"""How the ALOHA table looks: our own colours, the same in all episodes, and light that varies a little."""

import dataclasses

import numpy as np

from motus_jax.robots.simulator import mujoco, package_folder

# Plain and matte on purpose. In a picture of 96 pixels a pattern on the table is most of what moves through the wrist
# cameras; a small video model then spends itself on grain and seams, and where it errs, leaves them behind as ghosts.
TABLE, FLOOR, SKY = (0.52, 0.45, 0.37), (0.27, 0.33, 0.42), (0.42, 0.48, 0.57)
# The left arm cool, the right one warm, so that they can be told apart.
ARMS = {"vx300s_left": (0.34, 0.44, 0.60), "vx300s_right": (0.62, 0.46, 0.34)}


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
    """Tints the arms, fingers darker."""
    for geom in range(model.ngeom):
        name = model.geom(geom).name
        for prefix, colour in ARMS.items():
            if name.startswith(prefix):
                dark = 0.55 if "finger" in name or "gripper" in name else 1.0
                model.geom_rgba[geom, :3] = np.array(colour) * dark


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
    """Compiles a gym-aloha scene ("transfer_cube" or "insertion") with a floor, colours and real wrist cameras.

    Raises:
      UserError: gym-aloha is not installed.
    """
    assets = package_folder("gym_aloha") / "assets"
    spec = mujoco.MjSpec.from_file(str(assets / f"bimanual_viperx_{layout}.xml"))
    plane = dict(type=mujoco.mjtGeom.mjGEOM_PLANE, contype=0, conaffinity=0)
    # Pictures only: contacts stay with the wheel's own table, half a millimetre lower.
    spec.worldbody.add_geom(name="table_top", size=[0.61, 0.381, 0.1], pos=[0, 0.6, 0.0005], rgba=[*TABLE, 1], **plane)
    spec.worldbody.add_geom(name="floor", size=[4, 4, 0.1], pos=[0, 0.6, -0.75], rgba=[*FLOOR, 1], **plane)
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_FLAT,
        rgb1=SKY,
        rgb2=SKY,
        width=64,
        height=384,
    )
    model = spec.compile()
    model.vis.quality.offsamples = 4  # smooth edges
    _paint(model)
    _place_cameras(model)
    return model
