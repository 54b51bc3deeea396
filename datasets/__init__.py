"""Domains, label encodings, data sets, the epoch plan and the loaders."""
