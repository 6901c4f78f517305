"""Data iterators that note what they gave."""


def record(batches, seen):
    """The same grain iterator, noting the clips of every batch in `seen`."""
    take = type(batches).__next__

    class Recorded(type(batches)):
        def __next__(self):
            batch = take(self)
            seen.append(batch.clip.tolist())
            return batch

    batches.__class__ = Recorded
    return batches
