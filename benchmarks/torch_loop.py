"""The denoising loop in eager PyTorch, as the public release has it: the vision-language model runs in every step.

The experts are those of `benchmarks/torch_motus.py` with our weights, so that the answers can be compared. The
vision-language model has its size and random weights; its states are thrown away, and ours are taken. What encodes the
text and the picture and what decodes the video is left out: PyTorch has less to do here than our sampler has.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor

from benchmarks import torch_step
from benchmarks.latency_subject import Subject
from motus_jax.errors import UserError
from motus_jax.flow_matching import TIMESTEP_SCALE
from motus_jax.modes import Role, get_mode
from motus_jax.sampling.denoise import make_plan
from motus_jax.sampling.sampler import draw_noise
from motus_jax.sampling.settings import Settings


def as_call(subject: Subject, mode: str, settings: Settings) -> Callable[[int], dict[str, np.ndarray]]:
    """A call as those of `benchmarks.latency`: the number of an observation to its answer."""
    row = get_mode(mode)
    if row.video is Role.GIVEN or row.action is not Role.DENOISED:
        raise UserError(f"--torch: expected the modes joint and vla; found {mode}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, subject.system.motus_config.dtype)
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), dict(subject.params["motus"]))
    model = torch_step.load(subject.system.motus_config, weights).to(device, dtype).eval()
    inputs = [_inputs(subject, i, device) for i in range(len(subject.batches))]
    vlm = _vision_language_model(subject, inputs[0]["vlm_states"].shape[1], device, dtype)
    plan = make_plan(row, settings.video_steps, settings.action_steps, settings.grid_shift)
    levels = np.stack([np.asarray(part) for part in plan], axis=1).tolist()
    decode = jax.jit(subject.system.decode_video)

    @torch.inference_mode()
    def call(i: int) -> dict[str, np.ndarray]:
        given = inputs[i % len(inputs)]
        video, actions, condition = given["video"].clone(), given["actions"], given["video"][:, :, :1]
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            for tau_video, delta_video, tau_action, delta_action in levels:
                vlm()
                times = (torch.full((1,), TIMESTEP_SCALE * tau, device=device) for tau in (tau_video, tau_action))
                known = (given[name] for name in ("text_states", "text_mask", "vlm_states", "vlm_mask"))
                v_video, v_actions = model(video, actions, given["state"], *times, *known)
                v_video = _velocity(subject, "video", v_video, video, tau_video)
                v_actions = _velocity(subject, "action", v_actions, actions, tau_action)
                video = torch.cat([condition, (video + delta_video * v_video)[:, :, 1:]], 2)
                actions = actions + delta_action * v_actions
        found = {"actions": actions.float().cpu().numpy()}
        if row.returns_video:
            latents = video.float().cpu().permute(0, 2, 3, 4, 1).numpy()
            found["video"] = np.asarray(decode(subject.frozen, latents, subject.batches[i % len(inputs)]))
        return found

    return call


def _velocity(subject: Subject, name: str, output: Tensor, noisy: Tensor, tau: float) -> Tensor:
    """As `flow_matching.clean_to_velocity`, where the network predicts clean data."""
    clean = subject.config.model.prediction[name] == "clean"
    return (noisy - output.float()) / max(tau, 0.05) if clean else output.float()


def _inputs(subject: Subject, i: int, device: torch.device) -> dict[str, Tensor]:
    """What the loop of an observation starts from, encoded by us; the video channel-first, its frame 0 clean."""
    system, batch, key = subject.system, subject.batches[i], jax.random.key(i)
    parts = {**subject.frozen, **subject.params}
    latents = jax.jit(system.encode_video)(subject.frozen, batch["frames"][:, :1])
    noise = draw_noise(key, 0, (1, *system.latent_shape))
    states, real = jax.jit(system.vlm.states)(parts["vlm"], batch)
    mask = batch["instruction_mask"]
    found = {
        "video": np.moveaxis(np.concatenate([latents, noise[:, 1:]], axis=1), -1, 1),
        "actions": draw_noise(key, 1, batch["actions"].shape),
        "state": batch["state"],
        "text_states": jax.jit(system.text_states)(parts, batch).astype(np.float32),
        "text_mask": mask if system.motus_config.mask_text_padding else np.ones_like(mask),
        "vlm_states": states.astype(np.float32),
        "vlm_mask": real,
    }
    return {name: torch.from_numpy(np.array(value)).to(device) for name, value in found.items()}


def _vision_language_model(subject: Subject, tokens: int, device: torch.device, dtype: Any) -> Callable[[], Any]:
    """A forward pass over one picture and prompt, with random weights."""
    config = subject.system.vlm.config
    if subject.config.model.vlm.kind == "qwen3_vl":
        return _qwen3_vl(subject, device, dtype)
    layer = torch.nn.TransformerEncoderLayer(
        config.width, config.heads, config.mlp, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    model = torch.nn.TransformerEncoder(layer, config.depth, enable_nested_tensor=False).to(device, dtype).eval()
    x = torch.zeros(1, tokens, config.width, device=device, dtype=dtype)
    return lambda: model(x)


def _qwen3_vl(subject: Subject, device: torch.device, dtype: Any) -> Callable[[], Any]:
    """transformers' Qwen3-VL of the same sizes on as large a picture and as long a chat."""
    import transformers

    ours, data = subject.system.vlm.config, subject.config.data
    vision = ours.vision
    config = transformers.Qwen3VLConfig(
        text_config=dict(
            vocab_size=ours.vocabulary, hidden_size=ours.width, intermediate_size=ours.mlp,
            num_hidden_layers=ours.depth, num_attention_heads=ours.heads, num_key_value_heads=ours.kv_heads,
            head_dim=ours.head_dim, rms_norm_eps=ours.eps,
            rope_parameters=dict(
                rope_type="default", rope_theta=ours.rope_base, mrope_section=list(ours.sections),
                mrope_interleaved=True,
            ),
        ),
        vision_config=dict(
            depth=vision.depth, hidden_size=vision.width, num_heads=vision.heads, intermediate_size=vision.mlp,
            out_hidden_size=vision.out_width, patch_size=vision.patch, spatial_merge_size=vision.merge,
            temporal_patch_size=vision.temporal_patch, num_position_embeddings=vision.positions**2,
            deepstack_visual_indexes=list(vision.taps), hidden_act="gelu_pytorch_tanh",
        ),
        image_token_id=ours.image_token,
    )  # fmt: skip
    rows, columns = (side // vision.patch for side in data.image_size)
    ids = torch.ones(1, data.chat_length, dtype=torch.long, device=device)
    ids[0, 1 : 1 + rows * columns // vision.merge**2] = ours.image_token
    pixels = torch.zeros(
        rows * columns, vision.channels * vision.temporal_patch * vision.patch**2, device=device, dtype=dtype
    )
    with torch.device(device):
        model = transformers.Qwen3VLModel(config).to(dtype).eval()
        grid = torch.tensor([[1, rows, columns]])
        kinds = (ids == ours.image_token).int()
    return lambda: model(input_ids=ids, pixel_values=pixels, image_grid_thw=grid, mm_token_type_ids=kinds)
