"""From media to Batch."""
