"""TAVR in JAX: talking avatars from a reference video."""
