"""Steps, the loop they share, checkpoints and reports."""
