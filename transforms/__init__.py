"""Joint geometry on image and label; appearance and edge target on batches."""
