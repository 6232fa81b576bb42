"""The generator of the reference pages, which lies beside them and in no package."""

import importlib.util
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="session")
def reference():
    """The module `docs/reference/generate.py`."""
    name = "halp_reference_generator"
    found = importlib.util.spec_from_file_location(name, DOCS / "reference" / "generate.py")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    yield module
    del sys.modules[name]
