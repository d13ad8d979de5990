"""Ask the Python index which locked packages have known faults: `python containers/audit.py`.

Exit codes: 0 none has; 1 the ones printed have; 69 not all could be asked, which is no good news.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

LOCKS = Path(__file__).parent / "locks"
FAULTY, UNAVAILABLE = 1, 69  # as sysexits.h numbers it


def main() -> int:
    asked: set[str] = set()
    faulty, silent = [], 0
    for lock in sorted(LOCKS.glob("*.txt")):
        found = re.findall(r"^([a-z][^\s\[=]*)(?:\[.*?\])?==(\S+)", lock.read_text(), flags=re.M)
        pins = {f"{name}=={version}" for name, version in found} - asked
        asked |= pins
        for package in ask(pins) if pins else []:
            silent += "skip_reason" in package
            for fault in package.get("vulns", []):
                mended = ", ".join(fault["fix_versions"]) or "none"
                pin = f"{package['name']}=={package['version']}"
                faulty.append(f"{lock.name}: {pin}: {fault['id']}, mended in: {mended}")
    print("\n".join([*faulty, f"audit: {len(asked)} packages, {len(faulty)} known faults"]))
    if silent:
        print(f"audit: NOT ASKED: the index tells no faults of {silent} of the {len(asked)} here")
    return FAULTY if faulty else UNAVAILABLE if silent else 0


def ask(pins: set[str]) -> list[dict]:
    """What pip-audit knows of each package: `vulns`, or a `skip_reason`."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(sorted(pins)))
        file.flush()
        command = ["pip-audit", f"--requirement={file.name}", "--no-deps", "--disable-pip"]
        command += ["--format=json", "--progress-spinner=off"]
        done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout:
        sys.exit(f"audit: pip-audit says nothing:\n{done.stderr}")
    return json.loads(done.stdout)["dependencies"]


if __name__ == "__main__":
    sys.exit(main())
