"""Pure-functional Flax modules: no file here knows data, files on disk or devices."""
