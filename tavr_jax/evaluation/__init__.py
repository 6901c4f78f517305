"""Generate, score, and show."""
