"""Puts ONNX models into the MLflow registry, in the form that Hedgerow serves.

Needs `pip install 'hedgerow[publish]'`; the client's base install does without.
"""

from __future__ import annotations

from hedgerow.publishing.publication import PublishedVersion, publish

__all__ = ["PublishedVersion", "publish"]
