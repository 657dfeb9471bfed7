"""YAML files of feature views."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hedgerow_protos.feature_view import ViewError, parse_views, view_ref
from hedgerow_protos.hedgerow_control_pb2 import FeatureView
from hedgerow_protos.yaml_message import SpecError

from hedgerow.errors import ViewRefused


def read_views(paths: Sequence[str | os.PathLike[str]]) -> list[FeatureView]:
    """The views of YAML files, each name and version once.

    Raises:
        ViewRefused: A file cannot be read, or a view breaks a rule.
    """
    found: dict[str, str] = {}
    views: list[FeatureView] = []
    for path in paths:
        source = os.fspath(path)
        try:
            read = parse_views(Path(path).read_text(encoding="utf-8"), source=source)
        except OSError as error:
            raise ViewRefused(f"{source}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise ViewRefused(f"{source} is not UTF-8 text: {error}") from error
        except (ViewError, SpecError) as error:
            raise ViewRefused(str(error)) from error
        for view in read:
            if view_ref(view) in found:
                raise ViewRefused(f"{view_ref(view)} is in {found[view_ref(view)]} and again in {source}")
            found[view_ref(view)] = source
        views += read
    return views
