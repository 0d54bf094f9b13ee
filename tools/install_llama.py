"""Install llama-cpp-python into the running environment, showing how far the compiler is.

Compiling llama.cpp takes minutes and pip is silent meanwhile.  pip keeps the wheel, so it happens once a machine.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

STEP = re.compile(r"^\s*\[\s*(\d+)/(\d+)\]")


def requirement() -> str:
    """The requirement on llama-cpp-python as pyproject.toml states it."""
    text = Path("pyproject.toml").read_text()
    found = re.search(r'"(llama-cpp-python[^"]*)"', text)
    assert found is not None
    return found.group(1)


def main() -> int:
    """Run pip; 0 if it succeeded."""
    log = Path("build/llama-build.log")
    log.parent.mkdir(exist_ok=True)
    pip = [sys.executable, "-m", "pip", "install", "--verbose", "--disable-pip-version-check", requirement()]
    print(f"installing {requirement()}: if it must be compiled, about 5 minutes on 2 cores (log: {log})", flush=True)
    live = sys.stdout.isatty()
    shown = -1
    with (
        log.open("w") as out,
        subprocess.Popen(pip, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run,
    ):
        assert run.stdout is not None
        for line in run.stdout:
            out.write(line)
            step = STEP.match(line)
            if not step:
                continue
            done, total = int(step[1]), int(step[2])
            percent = 100 * done // total
            if live:
                print(f"\r  compiling llama.cpp: {done}/{total} ({percent} %) ", end="", flush=True)
            elif percent // 10 != shown // 10:
                print(f"  compiling llama.cpp: {percent} %", flush=True)
            shown = percent
    if live and shown >= 0:
        print()
    if run.returncode != 0:
        print(f"error: pip failed, the end of {log}:", *log.read_text().splitlines()[-25:], sep="\n", file=sys.stderr)
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())
