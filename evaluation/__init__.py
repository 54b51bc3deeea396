"""Scores of a network: metrics, the evaluator, the report, pictures of what the network computes inside."""
