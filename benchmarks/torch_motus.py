"""The three experts of Motus written plainly in PyTorch: what the training step is measured against.

Written from the algebra of the model, the way a PyTorch user would: `nn.Module`s, fused scaled-dot-product attention,
rotary embedding in complex numbers, or in real ones where torch.compile is to see them. Parameters carry the names of
the public checkpoints, so that `motus_jax.weights.motus` loads ours into it. Latents are channel-first as in the public
model: B batch, C channels, F frames, H W latent pixels.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motus_jax.models.config import ActionExpertConfig, MotusConfig, UnderstandingExpertConfig, VideoExpertConfig
from motus_jax.models.layers import position_table, rope_table


def mlp(widths: list[int], activation: nn.Module) -> nn.Sequential:
    """Linear layers with an activation between them, numbered 0, 2, 4, ..."""
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        layers += [nn.Linear(width_in, width_out), activation]
    return nn.Sequential(*layers[:-1])


def sinusoid(t: Tensor, width: int) -> Tensor:
    """[cos | sin] of timesteps [B], angles in float64 as Wan has them; float32 [B, width]."""
    ladder = 10_000 ** (-torch.arange(width // 2, dtype=torch.float64, device=t.device) / (width // 2))
    angle = t.double()[:, None] * ladder
    return torch.cat([angle.cos(), angle.sin()], -1).float()


def modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm without parameters, then x (1 + scale) + shift; x [B, S, D], shift and scale [B, 1, D]."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotates adjacent pairs of x [B, S, N, K] by the unit complex numbers `rope` [S, 1, K/2], or [2, S, 1, K/2]."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if rope.is_complex():
        return torch.view_as_real(torch.view_as_complex(pairs) * rope).flatten(-2)
    (even, odd), (cos, sin) = pairs.unbind(-1), rope
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
    """Softmax attention over [B, S, N, K]; keys where `key_mask` [B, S] is False get no weight."""
    mask = None if key_mask is None else key_mask[:, None, None, :]
    q, k, v = (tensor.to(v.dtype).transpose(1, 2) for tensor in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2)


class WanAttention(nn.Module):
    """Projections of self- and cross-attention of the video expert."""

    def __init__(self, config: VideoExpertConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm_q, self.norm_k = (nn.RMSNorm(width, config.eps) for _ in range(2))

    def qkv(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tensors = self.norm_q(self.q(x)), self.norm_k(self.k(context)), self.v(context)
        return tuple(tensor.unflatten(-1, (self.heads, -1)) for tensor in tensors)


class WanBlock(nn.Module):
    """One layer of the video expert."""

    def __init__(self, config: VideoExpertConfig) -> None:
        super().__init__()
        width, self.eps = config.width, config.eps
        self.modulation = nn.Parameter(torch.empty(1, 6, width))
        self.self_attn, self.cross_attn = WanAttention(config), WanAttention(config)
        self.norm3 = nn.LayerNorm(width, config.eps)
        self.ffn = mlp([width, config.mlp, width], nn.GELU("tanh"))

    def qkv(self, x: Tensor, m: tuple[Tensor, ...], rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normed = modulated(x, m[0], m[1], self.eps)
        q, k, v = self.self_attn.qkv(normed, normed)
        return rotate(q, rope), rotate(k, rope), v

    def after_attention(
        self, x: Tensor, out: Tensor, m: tuple[Tensor, ...], text: Tensor, text_mask: Tensor | None
    ) -> Tensor:
        x = x + self.self_attn.o(out.flatten(-2)) * m[2]
        crossed = attend(*self.cross_attn.qkv(self.norm3(x), text), text_mask)
        x = x + self.cross_attn.o(crossed.flatten(-2))
        return x + self.ffn(modulated(x, m[3], m[4], self.eps)) * m[5]


class NarrowBlock(nn.Module):
    """One layer of the action (`word` "action", modulated) or the understanding expert (`word` "und")."""

    def __init__(
        self, word: str, config: ActionExpertConfig | UnderstandingExpertConfig, video: VideoExpertConfig
    ) -> None:
        super().__init__()
        self.word, self.eps, width = word, config.eps, config.width
        parts = {
            "qkv": nn.Parameter(torch.empty(3, video.heads, width, video.head_dim)),
            "o": nn.Linear(video.width, width, bias=False),
            "norm_q": nn.RMSNorm(video.width, config.eps),
            "norm_k": nn.RMSNorm(video.width, config.eps),
        }
        for name, part in parts.items():
            setattr(self, f"wan_{word}_{name}", part)
        if word == "action":
            self.modulation = nn.Parameter(torch.empty(1, 6, width))
        self.ffn = mlp([width, config.mlp, width], nn.GELU("tanh"))

    def part(self, name: str) -> nn.Module | nn.Parameter:
        return getattr(self, f"wan_{self.word}_{name}")

    def qkv(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight = self.part("qkv")
        heads = weight.shape[1]
        q, k, v = (normed @ weight.permute(2, 0, 1, 3).flatten(1)).chunk(3, -1)
        tensors = self.part("norm_q")(q), self.part("norm_k")(k), v
        return tuple(tensor.unflatten(-1, (heads, -1)) for tensor in tensors)


class ActionBlock(NarrowBlock):
    """One layer of the action expert."""

    def after_attention(self, x: Tensor, out: Tensor, m: tuple[Tensor, ...]) -> Tensor:
        x = x + self.part("o")(out.flatten(-2)) * m[2]
        return x + self.ffn(modulated(x, m[3], m[4], self.eps)) * m[5]


class UnderstandingBlock(NarrowBlock):
    """One layer of the understanding expert."""

    def after_attention(self, x: Tensor, out: Tensor) -> Tensor:
        x = x + self.part("o")(out.flatten(-2))
        return x + self.ffn(F.layer_norm(x, x.shape[-1:], eps=self.eps))


def time_layers(frequencies: int, width: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Timestep embedding and its projection to six modulation vectors."""
    return mlp([frequencies, width, width], nn.SiLU()), nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))


class Timed(nn.Module):
    """What the video and the action expert share: `time_embedding`, `time_projection` and modulated blocks."""

    def __init__(self, frequencies: int, width: int) -> None:
        super().__init__()
        self.frequencies, self.width = frequencies, width
        self.time_embedding, self.time_projection = time_layers(frequencies, width)

    def embed_time(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """t [B] -> vector for the head [B, 1, D] and six for the blocks [B, 6, D]."""
        head = self.time_embedding(sinusoid(t, self.frequencies))
        return head[:, None], self.time_projection(head).unflatten(-1, (6, -1))


class WanHead(nn.Module):
    """Modulated LayerNorm and a linear layer to the patch."""

    def __init__(self, config: VideoExpertConfig) -> None:
        super().__init__()
        pf, ph, pw = config.patch
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.empty(1, 2, config.width))
        self.head = nn.Linear(config.width, pf * ph * pw * config.latent_channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.head(modulated(x, *(self.modulation + time).chunk(2, 1), self.eps))


class Wan(Timed):
    """Video expert."""

    def __init__(self, config: VideoExpertConfig, depth: int) -> None:
        super().__init__(config.frequencies, config.width)
        self.config = config
        self.patch_embedding = nn.Conv3d(config.latent_channels, config.width, config.patch, config.patch)
        self.text_embedding = mlp([config.text_width, config.width, config.width], nn.GELU("tanh"))
        self.blocks = nn.ModuleList(WanBlock(config) for _ in range(depth))
        self.head = WanHead(config)
        self.register_parameter("places", None)  # [h w, D], set where the model has it

    def unpatchify(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """[B, f*h*w, pf*ph*pw*C] -> [B, C, F, H, W]."""
        b, (f, h, w), (pf, ph, pw) = len(x), grid, self.config.patch
        x = x.view(b, f, h, w, pf, ph, pw, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return x.reshape(b, -1, f * pf, h * ph, w * pw)


class InputEncoder(nn.Module):
    """State and actions to tokens."""

    def __init__(self, config: ActionExpertConfig) -> None:
        super().__init__()
        hidden = [config.width] * 3
        self.state_encoder = mlp([config.state_dim, *hidden], nn.SiLU())
        self.action_encoder = mlp([config.action_dim, *hidden], nn.SiLU())


class ActionDecoder(nn.Module):
    """Modulated LayerNorm and a linear layer to the action."""

    def __init__(self, config: ActionExpertConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.empty(1, 2, config.width))
        self.action_head = nn.Sequential(nn.Linear(config.width, config.action_dim))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.action_head(modulated(x, *(self.modulation + time).chunk(2, 1), self.eps))


class ActionExpert(Timed):
    """Action expert with state token and registers."""

    def __init__(self, config: ActionExpertConfig, video: VideoExpertConfig, depth: int) -> None:
        super().__init__(config.frequencies, config.width)
        self.registers = nn.Parameter(torch.empty(1, config.registers, config.width))
        self.input_encoder = InputEncoder(config)
        self.blocks = nn.ModuleList(ActionBlock("action", config, video) for _ in range(depth))
        self.decoder = ActionDecoder(config)

    def embed(self, actions: Tensor, state: Tensor) -> Tensor:
        state = self.input_encoder.state_encoder(state)[:, None]
        tokens = [state, self.input_encoder.action_encoder(actions), self.registers.expand(len(state), -1, -1)]
        x = torch.cat(tokens, 1)
        return x + torch.from_numpy(position_table(x.shape[1], x.shape[2])).to(x.device)


class UnderstandingExpert(nn.Module):
    """Understanding expert."""

    def __init__(self, config: UnderstandingExpertConfig, video: VideoExpertConfig, depth: int) -> None:
        super().__init__()
        self.vlm_adapter = mlp([config.input_width, *[config.width] * 3], nn.SiLU())
        self.blocks = nn.ModuleList(UnderstandingBlock("und", config, video) for _ in range(depth))


def joint_layer(
    blocks: tuple[WanBlock, ActionBlock, UnderstandingBlock], streams: tuple[Tensor, Tensor, Tensor],
    times: tuple[Tensor, Tensor], rope: Tensor, text: Tensor, text_mask: Tensor | None, key_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One layer of all experts: streams in, streams out."""
    (block, block_a, block_u), (x, a, u) = blocks, streams
    m, n = ((own.modulation + time).chunk(6, 1) for own, time in zip((block, block_a), times))
    parts = (
        block.qkv(x, m, rope),
        block_a.qkv(modulated(a, n[0], n[1], block_a.eps)),
        block_u.qkv(F.layer_norm(u, u.shape[-1:], eps=block_u.eps)),
    )
    q, k, v = (torch.cat(tensors, 1) for tensors in zip(*parts))
    out_x, out_a, out_u = attend(q, k, v, key_mask).split([x.shape[1], a.shape[1], u.shape[1]], 1)
    x = block.after_attention(x, out_x, m, text, text_mask)
    return x, block_a.after_attention(a, out_a, n), block_u.after_attention(u, out_u)


class TorchMotus(nn.Module):
    """Motus in the form with state, text padding masked where masks are given, one timestep for all video tokens.

    Attributes:
      run_layer: calls `joint_layer`, or something that it was compiled to, or that checkpoints it.
      complex_rope: whether the rotary embedding is made of complex numbers.
    """

    def __init__(self, config: MotusConfig) -> None:
        super().__init__()
        self.config, self.run_layer, self.complex_rope = config, joint_layer, True
        self.video_model = nn.ModuleDict({"wan_model": Wan(config.video, config.depth)})
        self.action_expert = ActionExpert(config.action, config.video, config.depth)
        self.und_expert = UnderstandingExpert(config.understanding, config.video, config.depth)

    def forward(
        self,
        video: Tensor,
        actions: Tensor,
        state: Tensor,
        t_video: Tensor,
        t_action: Tensor,
        text_states: Tensor,
        text_mask: Tensor | None,
        vlm_states: Tensor,
        vlm_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Velocities [B, C, F, H, W] and [B, T, A]; arguments as of our `Motus`, video channel-first."""
        wan, action, und = self.video_model["wan_model"], self.action_expert, self.und_expert
        patches = wan.patch_embedding(video)
        grid = tuple(patches.shape[2:])
        x = patches.flatten(2).transpose(1, 2)
        if wan.places is not None:
            x = x + wan.places.repeat(grid[0], 1)
        a, u = action.embed(actions, state), und.vlm_adapter(vlm_states)
        text = wan.text_embedding(text_states)
        head_v, time_v = wan.embed_time(t_video)
        head_a, time_a = action.embed_time(t_action)
        cos, sin = (torch.from_numpy(table).to(x.device) for table in rope_table(grid, self.config.video.head_dim))
        rope = torch.complex(cos, sin)[:, None] if self.complex_rope else torch.stack([cos, sin])[:, :, None]
        key_mask = None
        if vlm_mask is not None:
            key_mask = torch.cat([vlm_mask.new_ones(len(x), x.shape[1] + a.shape[1]), vlm_mask], 1)
        for blocks in zip(wan.blocks, action.blocks, und.blocks):
            x, a, u = self.run_layer(blocks, (x, a, u), (time_v, time_a), rope, text, text_mask, key_mask)
        velocity = wan.unpatchify(wan.head(x, head_v), grid)
        return velocity, action.decoder(a, head_a)[:, 1 : 1 + actions.shape[1]]
