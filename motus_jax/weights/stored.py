"""One tensor that lies in a file: where it is and how it is laid out. Nothing is read before `read`."""

import dataclasses
import math
import pathlib

import numpy as np

from motus_jax.errors import UserError


class Buffer:
    """Memory that one tensor after the other is read into: fresh pages can cost more than the reading."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def take(self, nbytes: int) -> np.ndarray:
        """`nbytes` bytes, [nbytes]; what was taken before loses its meaning."""
        if nbytes > self._bytes.size:
            self._bytes = np.empty(nbytes, np.uint8)
        return self._bytes[:nbytes]


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
      path: the file.
      offset: first byte.
      dtype: element type; bfloat16 is `ml_dtypes.bfloat16`.
      shape: dimensions.
      strides: elements from one entry to the next, per dimension; None means row-major without gaps.
    """

    path: pathlib.Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def extent(self) -> int:
        """Elements of the file that the tensor spans, gaps included."""
        if self.strides is None or self.size == 0:
            return self.size
        return 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides))

    @property
    def nbytes(self) -> int:
        """Bytes that `read` takes from the file."""
        return self.extent * self.dtype.itemsize

    def read(self, buffer: "Buffer | None" = None) -> np.ndarray:
        """The tensor, copied: pages of a mapped file would count as our memory until it is unmapped.

        Args:
          buffer: where to read to; the result is valid until its next use. None takes fresh memory.

        Raises:
          UserError: the file became shorter than it was when it was opened.
        """
        flat = (buffer or Buffer()).take(self.nbytes)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            done = 0
            while done < self.nbytes and (count := file.readinto(flat[done:])):  # Linux reads at most 2 GB at once
                done += count
        if done < self.nbytes:
            raise UserError(f"{self.path}: expected {self.nbytes} bytes at {self.offset}, found {done}: truncated")
        flat = flat.view(self.dtype)
        if self.strides is None:
            return flat.reshape(self.shape)
        steps = tuple(stride * self.dtype.itemsize for stride in self.strides)
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False))
