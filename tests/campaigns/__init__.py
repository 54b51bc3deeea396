"""Long trials of whole programs; a short form of each is a test. `python -m tests.campaigns.NAME --help`."""
