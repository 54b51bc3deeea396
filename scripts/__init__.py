"""Programs beside train.py and valid.py, run as `python -m scripts.NAME`."""
