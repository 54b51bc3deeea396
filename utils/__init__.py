"""Everything that is neither data, network nor loss: processes, checkpoints, scores, logs, reports."""
