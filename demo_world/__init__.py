"""A small procedural street-scene set: five domains in the on-disk layouts and encodings of the real data sets."""

from demo_world.write import Frame, Summary, render_frame, write_domains

__all__ = ["Frame", "Summary", "render_frame", "write_domains"]
