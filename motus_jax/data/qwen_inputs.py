"""From pictures and rendered chats to the static arrays that Qwen3-VL reads. NumPy and Pillow, on the host."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from motus_jax.data.prompt import IMAGE_TOKEN
from motus_jax.data.tokenizers import QwenTokenizer
from motus_jax.errors import UserError
from motus_jax.models.vlm import VlmConfig, VlmInputs

Picture = UInt8[np.ndarray, "H W 3"]
Grid = tuple[int, int]
"""Rows and columns of an image, in patches."""

MOST_ELONGATED = 200
"""Longest side over shortest that the public processor accepts."""


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """Resizes, normalises and cuts pictures as the public `Qwen2VLImageProcessor` does; defaults are Qwen3-VL-2B's.

    Attributes:
      patch, temporal_patch, merge: as in `VisionConfig`.
      min_pixels, max_pixels: limits of the resized picture's area.
      mean, std: of a colour channel in [0, 1].
    """

    patch: int = 16
    temporal_patch: int = 2
    merge: int = 2
    min_pixels: int = 65_536
    max_pixels: int = 16_777_216
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "ImageProcessor":
        """The settings in a `preprocessor_config.json`.

        Raises:
          UserError: a field is missing.
        """
        size = config.get("size") or {}
        found = {
            "patch": config.get("patch_size"),
            "temporal_patch": config.get("temporal_patch_size"),
            "merge": config.get("merge_size"),
            "min_pixels": config.get("min_pixels") or size.get("shortest_edge"),
            "max_pixels": config.get("max_pixels") or size.get("longest_edge"),
            "mean": config.get("image_mean"),
            "std": config.get("image_std"),
        }
        missing = [name for name, value in found.items() if value is None]
        if missing:
            raise UserError(f"preprocessor_config.json: expected {', '.join(found)}; it does not say {missing[0]}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()})

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing: multiples of patch * merge, area within the limits, aspect about kept.

        Raises:
          UserError: the picture is too elongated.
        """
        if max(height, width) > MOST_ELONGATED * min(height, width):
            raise UserError(f"picture of {height} x {width}: expected sides that differ at most {MOST_ELONGATED} times")
        unit, sides = self.patch * self.merge, (height, width)
        nearest = tuple(round(side / unit) * unit for side in sides)
        area = math.prod(nearest)
        if area > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            return tuple(max(unit, math.floor(side / shrink / unit) * unit) for side in sides)
        if area < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            return tuple(math.ceil(side * grow / unit) * unit for side in sides)
        return nearest

    def grid(self, height: int, width: int) -> Grid:
        """Patches of a picture, before merging; a picture has rows * columns / merge**2 tokens."""
        return tuple(side // self.patch for side in self.resized(height, width))

    def __call__(self, picture: Picture) -> tuple[Float[np.ndarray, "P E"], Grid]:
        """Patches of a picture and their grid.

        Resized with Pillow's bicubic filter on 8-bit colours. Patches go block by block of merge x merge; the values of
        a patch in the order channel, frame (the picture, repeated), row, column.

        Raises:
          UserError: not an 8-bit colour picture, or too elongated.
        """
        picture = np.asarray(picture)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise UserError(f"picture: expected uint8 [height, width, 3], found {picture.dtype} {picture.shape}")
        height, width = self.resized(*picture.shape[:2])
        pixels = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC), np.float32)
        pixels = (pixels / 255 - np.float32(self.mean)) / np.float32(self.std)
        rows, columns = height // self.patch, width // self.patch
        m, p = self.merge, self.patch
        blocks = pixels.reshape(rows // m, m, p, columns // m, m, p, 3).transpose(0, 3, 1, 4, 6, 2, 5)
        patches = blocks.reshape(rows * columns, 3, 1, p, p).repeat(self.temporal_patch, axis=2)
        return patches.reshape(rows * columns, -1), (rows, columns)


def patch_places(grid: Grid, merge: int) -> Int[np.ndarray, "P 4"]:
    """(row, column, rows, columns) of every patch of an image, block by block of merge x merge."""
    place = np.indices(grid).reshape(2, grid[0] // merge, merge, grid[1] // merge, merge)
    place = place.transpose(1, 3, 2, 4, 0).reshape(-1, 2)
    return np.concatenate([place, np.broadcast_to(grid, place.shape)], axis=1).astype(np.int32)


def token_positions(
    tokens: Sequence[int], grids: Sequence[Grid], image_token: int, merge: int
) -> Int[np.ndarray, "L 3"]:
    """Rotary positions (time, row, column) of an unpadded prompt (`get_rope_index` of the public model).

    A text token stands at one more than the largest position before it, on all three axes. An image starts there too:
    its tokens share the time and count rows and columns from it.

    Args:
      grids: of the prompt's images, in order; each has rows * columns / merge**2 image tokens in a run.

    Raises:
      UserError: image tokens and grids do not agree.
    """
    tokens, remaining = np.asarray(tokens), list(grids)
    positions = np.zeros((len(tokens), 3), np.int32)
    at, place = 0, 0
    while at < len(tokens):
        count, step = 1, 1
        if tokens[at] == image_token:
            rows, columns = (side // merge for side in (remaining.pop(0) if remaining else (0, 0)))
            count, step = rows * columns, max(rows, columns)
            if not count or not (len(tokens) >= at + count and (tokens[at : at + count] == image_token).all()):
                found = int((tokens == image_token).sum())
                raise UserError(f"prompt with {found} image tokens: expected one for each feature of images {grids}")
            positions[at : at + count, 1:] = np.indices((rows, columns)).reshape(2, -1).T
        positions[at : at + count] += place
        at, place = at + count, place + step
    if remaining:
        raise UserError(f"prompt has image tokens for {len(grids) - len(remaining)} images, expected {len(grids)}")
    return positions


@dataclasses.dataclass(frozen=True)
class InputBuilder:
    """Makes the model's batches. The three parts must belong together.

    Raises:
      UserError: they differ in patch sizes or in the image token.
    """

    config: VlmConfig
    processor: ImageProcessor
    tokenizer: QwenTokenizer

    def __post_init__(self) -> None:
        vision = self.config.vision
        pairs = {name: (getattr(vision, name), getattr(self.processor, name))
                 for name in ("patch", "temporal_patch", "merge")}  # fmt: skip
        pairs["id of " + IMAGE_TOKEN] = self.config.image_token, self.tokenizer.image_token
        for name, (expected, found) in pairs.items():
            if expected != found:
                raise UserError(f"Qwen3-VL: its config.json says {name} = {expected}, processor or tokenizer {found}")

    def __call__(
        self,
        chats: Sequence[str],
        pictures: Sequence[Sequence[Picture]],
        length: int,
        patches: int,
        rows: int | None = None,
    ) -> VlmInputs:
        """One batch of static shape.

        Args:
          chats: rendered by `prompt.build_chat`, each with one image marker for each of its pictures.
          pictures: of every chat, of any size.
          length: L, tokens of a chat with its image tokens.
          patches: P, patches of a row.
          rows: R, a divisor of the number of chats B; B if left out (see `VlmInputs`).

        Raises:
          UserError: a chat or a row does not fit, or markers and pictures do not agree.
        """
        rows, merge = rows or len(chats), self.config.vision.merge
        if len(pictures) != len(chats) or len(chats) % rows or patches % merge**2:
            raise UserError(
                f"Qwen3-VL batch: expected pictures for each of {len(chats)} chats, found {len(pictures)}; rows must"
                f" divide the chats, found {rows}; patches must be a multiple of {merge**2}, found {patches}"
            )
        cut = [[self.processor(picture) for picture in group] for group in pictures]
        texts = [self._tokens(chat, [grid for _, grid in images], length) for chat, images in zip(chats, cut)]
        share = len(chats) // rows
        packed = [self._pack([image for images in cut[i : i + share] for image in images], patches)
                  for i in range(0, len(chats), share)]  # fmt: skip
        return VlmInputs(*map(np.stack, (*zip(*texts), *zip(*packed))))

    def _tokens(self, chat: str, grids: Sequence[Grid], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, mask and positions of one chat, padded to `length`; padding has token 0 and position 0."""
        ids = list(self._expanded(self.tokenizer.encode(chat), grids))
        if len(ids) > length:
            raise UserError(f"chat of {len(ids)} tokens: expected at most `length`={length}; shorten {chat!r}")
        positions = token_positions(ids, grids, self.config.image_token, self.config.vision.merge)
        free = length - len(ids)
        return np.pad(np.int32(ids), (0, free)), np.arange(length) < len(ids), np.pad(positions, ((0, free), (0, 0)))

    def _expanded(self, ids: Sequence[int], grids: Sequence[Grid]) -> Iterator[int]:
        """The ids with every image marker repeated for the features of its image."""
        image_token, merge, markers = self.config.image_token, self.config.vision.merge, 0
        for token in ids:
            count = 1
            if token == image_token:
                count = math.prod(grids[markers]) // merge**2 if markers < len(grids) else 1
                markers += 1
            yield from [token] * count
        if markers != len(grids):
            raise UserError(f"chat with {markers} image markers: expected as many as its pictures, {len(grids)}")

    def _pack(
        self, images: Sequence[tuple[np.ndarray, Grid]], length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Patches, segments and places of one row, padded to `length` with zeros."""
        counts = [len(values) for values, _ in images]
        if sum(counts) > length:
            raise UserError(f"row of images with {counts} patches: expected at most `patches`={length} together")
        patches = np.zeros((length, self.config.vision.patch_values), np.float32)
        segments, places = np.zeros(length, np.int32), np.zeros((length, 4), np.int32)
        at = 0
        for number, (values, grid) in enumerate(images, start=1):
            part = slice(at, at + len(values))
            patches[part], segments[part] = values, number
            places[part] = patch_places(grid, self.config.vision.merge)
            at = part.stop
        return patches, segments, places
