"""Say how much is about to be downloaded, where pip would install the CUDA build of torch; else say nothing.

    .venv/bin/python scripts/announce_torch.py torch==2.13.0 [pip's options]

The public index has no CPU build of torch for Linux. Nothing is downloaded here: pip is asked which versions it sees,
with the user's own configuration, and a CPU build is told by the end of its version, +cpu.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

CPU_INDEX = "https://download.pytorch.org/whl/cpu"

NOTICE = """
pip is about to install {requirement} from the public package index. On Linux
that is the build for NVIDIA GPUs. With the libraries that it brings it is a
download of about 2.7 GB (measured for torch 2.13.0 on x86-64).

quickstart and the tests need no GPU. To download about 0.2 GB instead, stop here
(Ctrl-C), and take the CPU build from PyTorch's own index:

    make quickstart TORCH="{requirement} --index-url {index}"

The same works with make test.
"""


def taken(version: str, listed: str) -> str | None:
    """The build of that version that pip prefers, of those that `pip index versions` lists; None if it lists none."""
    available = re.search(r"^Available versions: (.*)$", listed, re.MULTILINE)
    versions = available[1].split(", ") if available else []
    return next((build for build in versions if build.partition("+")[0] == version), None)  # the preferred one is first


def main(requirement: str, *options: str) -> None:
    pinned = re.fullmatch(r"torch==([\w.]+)", requirement)
    if sys.platform != "linux" or pinned is None or importlib.util.find_spec("torch"):
        return
    command = [sys.executable, "-m", "pip", "index", "versions", "torch", "--disable-pip-version-check", *options]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    build = taken(pinned[1], listed)
    if build == pinned[1]:
        print(NOTICE.format(requirement=requirement, index=CPU_INDEX), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
