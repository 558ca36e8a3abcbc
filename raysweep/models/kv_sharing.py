"""The class of the mapping in which blocks leave keys and values for later blocks."""

from __future__ import annotations

from collections import UserDict
from typing import Any


def sharing_class() -> type[UserDict[Any, Any]]:
    """Return the class that transformers passes to blocks: KVSharingDict, or before 5.23 its parent."""
    try:
        from transformers.cache_utils import KVSharingDict
    except ImportError:
        return UserDict
    found: type[UserDict[Any, Any]] = KVSharingDict
    return found
