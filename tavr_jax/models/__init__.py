"""The TAVR transformer."""
