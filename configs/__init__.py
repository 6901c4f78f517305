"""What to run: ml_collections configs, data only."""
