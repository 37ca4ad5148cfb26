"""With default settings nothing goes out and nothing is open to others: the whole installation in a network of its own.

In a network namespace that has only the loopback device, every attempt to reach anything else (an address, a name) is counted
by the kernel, whatever library makes it. Linux, as root; elsewhere the test is left out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import missing

INSIDE = '''
import json, os, re, signal, socket, subprocess, sys, time, urllib.request
home, key = sys.argv[1], None

def refused():
    """Packets that had nowhere to go."""
    lines = [line.split() for line in open("/proc/net/snmp") if line.startswith("Ip:")]
    six = dict(line.split() for line in open("/proc/net/snmp6"))
    return int(dict(zip(*lines))["OutNoRoutes"]) + int(six["Ip6OutNoRoutes"])

def listening():
    """Addresses that somebody listens on."""
    found = set()
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for line in open(f"/proc/net/{name}").readlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" or (name.startswith("udp") and fields[3] == "07"):
                found.add(f"{name} {fields[1]}")
    return sorted(found)

subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect_ex(("192.0.2.1", 53))
control = refused()
out = open(f"{home}/up.txt", "w+b")
up = subprocess.Popen([sys.executable, "-m", "sutdol", "up", "--no-label-studio"], stdout=out, stderr=out)
statuses = []
try:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        text = open(f"{home}/up.txt").read()
        key = re.search(r"sut_[0-9a-f]+_[-\\w]+", text)
        try:
            ready = urllib.request.urlopen("http://127.0.0.1:8000/readyz", timeout=2).status == 200
        except OSError:
            ready = False
        if key and ready:
            break
        time.sleep(0.2)
    headers = {"Authorization": f"Bearer {key.group()}", "Content-Type": "image/png"}
    picture = open(f"{home}/picture.png", "rb").read()
    for _ in range(3):
        request = urllib.request.Request("http://127.0.0.1:8000/v1/predict/tiny", picture, headers)
        statuses.append(urllib.request.urlopen(request, timeout=60).status)
    roles = ""
    while time.monotonic() < deadline and roles.count("work") < 3:
        command = [sys.executable, "-c", "from sutdol.context import open_context as o; from sutdol.settings import load; "
                   "from sqlmodel import select; from sutdol.tables import Replica; "
                   "print([r.role for r in o(load()).database.read().__enter__().exec(select(Replica))])"]
        roles = subprocess.run(command, capture_output=True, text=True).stdout
        time.sleep(1)
    time.sleep(3)
    open_now = listening()
finally:
    up.send_signal(signal.SIGTERM)
    up.wait(40)
found = {"control": control, "refused": refused() - control, "listening": open_now}
print(json.dumps(found | {"statuses": statuses, "roles": roles}))
'''


def test_nothing_goes_out_and_nothing_listens_beyond_loopback(tmp_path: Path) -> None:
    """Serving, three workers and the clock, predictions and all: not one packet, not one name asked for."""
    unshare, ip = shutil.which("unshare"), shutil.which("ip")
    if os.geteuid() != 0 or unshare is None or ip is None:
        missing("a network namespace needs Linux, root, unshare and ip")
    from sutdol.context import open_context
    from sutdol.settings import load
    from tests.tiny_models import classifier_bundle, coloured_png

    context = open_context(load(home=tmp_path / ".sutdol"))
    classifier_bundle(context)
    context.database.close()
    (tmp_path / "picture.png").write_bytes(coloured_png())
    plain = {name: value for name, value in os.environ.items() if not name.startswith("SUTDOL_")}
    environment = plain | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [unshare, "--net", sys.executable, "-c", INSIDE, str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr + (tmp_path / "up.txt").read_text()
    found = json.loads(done.stdout)
    assert found["control"] >= 1  # the kernel does count
    assert found["statuses"] == [200] * 3
    assert found["roles"].count("work") == 3
    assert found["refused"] == 0
    assert found["listening"] == ["tcp 0100007F:1F40"]
