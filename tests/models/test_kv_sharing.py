"""The class of the mapping in which blocks leave keys and values for later blocks."""

from collections import UserDict

from transformers import cache_utils

from raysweep.models.kv_sharing import sharing_class


def test_it_is_what_transformers_passes_to_blocks():
    assert sharing_class() is cache_utils.KVSharingDict


def test_before_transformers_had_a_class_of_its_own_it_is_the_parent(monkeypatch):
    monkeypatch.delattr(cache_utils, "KVSharingDict")
    assert sharing_class() is UserDict
