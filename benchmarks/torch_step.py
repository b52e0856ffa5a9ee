"""The training step in plain PyTorch: loss, backward, clipping, AdamW, running average."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.experts import Batch, Experts
from benchmarks.torch_motus import TorchMotus
from motus_jax.flow_matching import TIMESTEP_SCALE
from motus_jax.training.optimizer import make_schedule
from motus_jax.weights import motus as names
from motus_jax.weights import tree
from motus_jax.weights.name_map import to_public

CHANNEL_LAST = ("latents", "video_noise")
PLACES = "video/places/embedding"
"""What the public layout has no name for."""


def load(config: Any, params: Mapping[str, Any]) -> TorchMotus:
    """The PyTorch model with our parameters.

    Args:
      config: a `MotusConfig`.
    """
    model = TorchMotus(config)
    leaves = tree.flatten(jax.tree.map(np.asarray, dict(params)))
    places = leaves.pop(PLACES, None)
    public = to_public(tree.unflatten(leaves), names.rules(config), config.depth)
    model.load_state_dict({name: torch.from_numpy(tensor.copy()) for name, tensor in public.items()})
    if places is not None:
        model.video_model["wan_model"].places = torch.nn.Parameter(torch.tensor(places.reshape(-1, places.shape[-1])))
    return model


def to_torch(batch: Batch) -> dict[str, Tensor]:
    """The batch as tensors, latents channel-first."""
    tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in batch.items()}
    return tensors | {name: tensors[name].permute(0, 4, 1, 2, 3).contiguous() for name in CHANNEL_LAST}


def velocities(model: TorchMotus, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """As `Experts.velocities`, the video channel-first."""
    tau_video, tau_action = batch["tau_video"].view(-1, 1, 1, 1, 1), batch["tau_action"].view(-1, 1, 1)
    video = torch.lerp(batch["latents"], batch["video_noise"], tau_video)
    video[:, :, 0] = batch["latents"][:, :, 0]
    actions = torch.lerp(batch["actions"], batch["action_noise"], tau_action)
    times = (TIMESTEP_SCALE * batch[f"tau_{name}"] for name in ("video", "action"))
    given = (batch.get(name) for name in ("text_states", "text_mask", "vlm_states", "vlm_mask"))
    return model(video, actions, batch["state"], *times, *given)


def loss(model: TorchMotus, batch: Mapping[str, Tensor]) -> Tensor:
    """As `Experts.loss` with the average over future frames."""
    video, actions = velocities(model, batch)
    target = batch["video_noise"] - batch["latents"]
    error = F.mse_loss(actions, batch["action_noise"] - batch["actions"], reduction="none") * batch["action_mask"]
    per_example = error.sum((1, 2)) / batch["action_mask"].sum((1, 2)).clamp(min=1)
    return F.mse_loss(video[:, :, 1:], target[:, :, 1:]) + per_example.mean()


def make_step(config: ml_collections.ConfigDict, batch: Batch) -> Callable[[], Tensor]:
    """One update with AdamW and the experiment's optimizer settings."""
    experts = Experts(config)
    params = experts.init(jax.random.key(config.seed))
    model, tensors = load(experts.system.motus_config, params), to_torch(batch)
    return update_of(config, model, params, lambda: loss(model, tensors))


def update_of(
    config: ml_collections.ConfigDict, model: TorchMotus, params: Mapping[str, Any], losses: Callable[[], Tensor]
) -> Callable[[], Tensor]:
    """One update of a model by what `losses` gives, with AdamW and the experiment's optimizer settings.

    Args:
      params: ours, or their shapes.
    """
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        _groups(model, model.config, params, settings), lr=settings.schedule.peak, betas=(settings.b1, settings.b2),
        eps=settings.eps, fused=True,
    )
    schedule = make_schedule(settings.schedule, config.steps)
    rates = [float(schedule(count)) / settings.schedule.peak for count in range(200)]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda count: rates[min(count, 199)])
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))

    def update() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        found = losses()
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        scheduler.step()
        average.update_parameters(model)
        return found.detach()

    return update


def _groups(model: TorchMotus, motus_config: Any, params: Mapping[str, Any], settings: Any) -> list[dict[str, Any]]:
    """Parameters by weight decay, as `config.optimizer.weight_decay` has it."""
    decays = tree.match(list(tree.flatten(params)), settings.weight_decay, "config.optimizer.weight_decay")
    by_name = {
        name: decays[rule.path] for rule in names.rules(motus_config) for name in rule.names(motus_config.depth)
    }
    by_name["video_model.wan_model.places"] = decays.get(PLACES)
    groups: dict[float, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(by_name[name], []).append(parameter)
    return [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]
