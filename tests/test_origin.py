"""Packages are those that an installer has put somewhere, wherever that is."""

import sys
import types

import pytest

from diffusers_oneflow.libraries import origin


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A function that pretends to have imported a package, or a file, from a folder."""

    def make(name, *parts):
        made = types.ModuleType(name)
        made.__file__ = str(tmp_path.joinpath(*parts))
        monkeypatch.setitem(sys.modules, name, made)
        origin.cache_clear()
        return name

    yield make
    origin.cache_clear()


def test_a_folder_with_installed_packages_is_one_of_packages(tmp_path, module):
    (tmp_path / "target" / "some_package-1.0.dist-info").mkdir(parents=True)
    assert origin(module("some_package_of_a_target", "target", "some_package_of_a_target", "__init__.py")) == "installed"
    assert origin(module("some_module_of_a_target", "target", "some_module_of_a_target.py")) == "installed"


def test_a_folder_of_the_users_is_not(tmp_path, module):
    (tmp_path / "project" / "mine").mkdir(parents=True)
    assert origin(module("mine_of_a_project", "project", "mine_of_a_project", "__init__.py")) == "user"
    assert origin(module("script_of_a_project", "script_of_a_project.py")) == "user"
