"""One example schema, one file a source, statistics and the input pipeline."""
