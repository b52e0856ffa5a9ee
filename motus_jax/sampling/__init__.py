"""The sampler of the five modes, and pictures and videos of what it makes."""
