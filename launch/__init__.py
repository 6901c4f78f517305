"""Composition roots: read a config, build, call. The only code with flags."""
