"""The demo: a real model served, swapped under load and rolled back, in scenes."""
