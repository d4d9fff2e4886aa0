"""A program is known by the code that its module's own code can reach, or is not kept."""

import importlib
import sys

import pytest
import torch

from diffusers_oneflow import libraries
from diffusers_oneflow.fingerprint import Unknowable, fingerprint

pytestmark = pytest.mark.usefixtures("settled")


def digest(module):
    return fingerprint(module).digest


MEMBERS = """
import getattr_me, pkg.ops, torch
from pkg import ops as alias
def named(x): return pkg.ops.act(x)
def inside(x):
    import pkg.deep.ops
    return pkg.ops.act(x)
def within(x):
    from pkg import ops
    return ops.act(x)
def given(x, place=None): return getattr(place, "act")(x)
def by_text(x): return given(x, alias)
def by_dictionary(x): return alias.__dict__["act"](x)
def evaluated(x): return eval("alias.act")(x)
def listed(x): return globals()["alias"].act(x)
def imported(x):
    import importlib as i
    return i.import_module("pkg.ops").act(x)
def loaded(x):
    import sys
    return sys.modules["pkg.ops"].act(x)
def variables(x): return vars(alias)["act"](x)
def aliased(x): return run("alias.act")(x)
def harmless(x): return x.eval()
run = eval
"""


@pytest.fixture
def members(tmp_path, monkeypatch):
    """A user's modules, and a function that makes a module of torch with a function of theirs as forward."""
    (tmp_path / "pkg" / "deep").mkdir(parents=True)
    for name, text in (("pkg/__init__", ""), ("pkg/ops", "def act(x): return x\n"), ("pkg/deep/__init__", ""),
                       ("pkg/deep/ops", ""), ("getattr_me", ""), ("members_test", MEMBERS)):  # fmt: skip
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    members_test = importlib.import_module("members_test")
    importlib.import_module("pkg.deep.ops")

    def make(name):
        return type("Own", (torch.nn.Module,), {"forward": staticmethod(getattr(members_test, name))})()

    yield make
    for name in [n for n in sys.modules if n.partition(".")[0] in ("pkg", "getattr_me", "members_test")]:
        del sys.modules[name]
    libraries.origin.cache_clear()


@pytest.mark.parametrize("name", ["named", "inside", "within", "by_text", "by_dictionary"])
def test_members_of_a_users_modules(members, name, monkeypatch):
    module = members(name)
    before = digest(module)
    assert digest(module) == before
    monkeypatch.setattr(sys.modules["pkg.ops"], "act", lambda x: x * 2)
    assert digest(module) != before


def test_a_users_module_in_an_attribute(members, monkeypatch):
    module = members("harmless")
    module.place = sys.modules["pkg"]
    before = digest(module)
    monkeypatch.setattr(sys.modules["pkg.ops"], "act", lambda x: x * 2)
    assert digest(module) != before


@pytest.mark.parametrize("name", ["evaluated", "listed", "imported", "loaded", "variables", "aliased"])
def test_code_that_may_reach_anything_is_not_kept(members, name):
    with pytest.raises(Unknowable):
        digest(members(name))
