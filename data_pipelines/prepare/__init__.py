"""From a folder of videos to a dataset: cut and filter, pair, encode."""
