"""Puts this folder on the path: what tests share lies here."""
