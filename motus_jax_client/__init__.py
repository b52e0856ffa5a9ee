"""A robot's side of `python -m motus_jax.serve`: numpy, msgpack and websockets, no JAX.

from motus_jax_client import Client

with Client("ws://gpu-machine:8000", api_key="...") as client:
    actions = client.infer({"prompt": "lift the cube", "state": state, "images": {"top": image}})["actions"]
"""

from motus_jax_client.client import Client, ConnectionLost, Refused
from motus_jax_client.runner import Runner

__all__ = ["Client", "ConnectionLost", "Refused", "Runner"]
