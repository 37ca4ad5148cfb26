"""The README tells the truth: its tables come from the code, its commands exist, its picture is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sutdol import cli, settings
from sutdol.client import reachable
from sutdol.images import encode_png
from sutdol.process import free_port
from tests.conftest import missing

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->"


def settings_table() -> str:
    """The table as the code says it; paste it into the README when this test tells you to."""
    rows = [f"| `{variable}` | {default or '-'} | {meaning} |" for _, variable, default, meaning in settings.describe()]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows]) + "\n"


def test_the_settings_table_is_the_codes() -> None:
    """A setting that is not in the table does not exist for users."""
    assert README.split(BEGIN)[1].split(END)[0] == settings_table()


def test_the_first_screen_has_two_commands_one_picture_and_one_curl() -> None:
    """Whoever has a minute sees what it is and how to start."""
    first = README.split("\n## What happens then")[0]
    assert re.search(r"^make demo\b", first, re.M)
    assert re.search(r"^make test\b", first, re.M)
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", first)
    assert len(pictures) == 1
    assert (ROOT / pictures[0]).is_file()
    assert len(re.findall(r"^curl ", first, re.M)) == 1


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`?make ([a-z-]+)`?", README))))
def test_every_make_target_of_the_readme_exists(target: str) -> None:
    """`make -n` resolves it without running it."""
    subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("command", sorted(set(re.findall(r"sutdol ([a-z]+)", README))))
def test_every_command_of_the_readme_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A README that names a command that is gone is worse than none."""
    cli.app([command, "--help"], result_action="return_value")
    assert "Example: " in capsys.readouterr().out or command == "keys"


def flowers(folder: Path) -> None:
    """Three kinds of very simple flowers, twenty each."""
    rng = np.random.default_rng(0)
    for channel, kind in enumerate(("rose", "leaf", "violet")):
        (folder / kind).mkdir(parents=True)
        for i in range(20):
            rgb = rng.integers(0, 60, (48, 48, 3)).astype(np.uint8)
            rgb[8:40, 8:40, channel] += 150
            (folder / kind / f"{i}.png").write_bytes(encode_png(rgb))


@pytest.mark.slow
def test_the_commands_of_the_first_screen_work_as_they_stand(tmp_path: Path) -> None:
    """Import, train, up, curl: copied out of the README and run."""
    if shutil.which("curl") is None:
        missing("curl is not installed: sudo apt-get install curl")
    block = README.split("## Five minutes with your own images")[1]
    commands = [line.split("#")[0].strip() for line in block.split("```sh\n")[1].split("```")[0].splitlines()]
    curl = block.split("```sh\n")[2].split("```")[0]
    shown = json.loads(block.split("```json\n")[1].split("```")[0])
    flowers(tmp_path / "flowers")
    (tmp_path / "rose.jpg").write_bytes((tmp_path / "flowers" / "rose" / "0.png").read_bytes())
    port = free_port()
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "SUTDOL_PORT": str(port)}
    environment = os.environ | own
    *first, up = [command for command in commands if command]
    assert up == "sutdol up"
    for command in first:
        subprocess.run(command, shell=True, cwd=tmp_path, env=environment, check=True)
    with (tmp_path / "up.txt").open("wb") as said:
        process = subprocess.Popen(
            ["sutdol", "up", "--no-label-studio"], cwd=tmp_path, env=environment, stdout=said, stderr=said
        )
    try:
        deadline = time.monotonic() + 60
        while not reachable(f"http://127.0.0.1:{port}/livez"):
            assert time.monotonic() < deadline, (tmp_path / "up.txt").read_text()
            time.sleep(0.1)
        key = re.findall(r"sut_[0-9a-f]+_[\w-]+", (tmp_path / "up.txt").read_text())[0]
        command = curl.replace("http://127.0.0.1:8000", f"http://127.0.0.1:{port}").replace("curl ", "curl -sS ")
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment | {"SUTDOL_KEY": key}, check=True, capture_output=True
        )
    finally:
        process.terminate()
        process.wait(30)
    answer = json.loads(done.stdout)
    assert answer["predictions"][0]["name"] == "rose"
    assert set(answer) == set(shown)
    assert set(answer["predictions"][0]) == set(shown["predictions"][0])
