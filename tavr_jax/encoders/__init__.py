"""Frozen networks around the transformer, and the names published weights have."""
