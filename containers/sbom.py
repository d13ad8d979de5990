"""What is inside this image, as CycloneDX on stdout: Debian's packages, Python's, llama.cpp."""

import importlib.metadata
import json
import re
import subprocess
import sys
import uuid
from pathlib import Path

ENVIRONMENT = Path("/opt/siftune")
# Without wheels: a base has none.
PACKAGES = next(iter(ENVIRONMENT.glob("lib/python3*/site-packages")), ENVIRONMENT)


def main() -> None:
    sbom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "name": f"siftune-{sys.argv[1]}",
            }
        },
        "components": [*debian(), *python()],
    }
    json.dump(sbom, sys.stdout, indent=1, sort_keys=True)


def debian() -> list[dict]:
    form = "${Package}\t${Version}\t${Architecture}\n"
    lines = subprocess.run(
        ["dpkg-query", "--show", "--showformat", form],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [component("deb/debian", *line.split("\t")) for line in lines]


def python() -> list[dict]:
    found = {
        (re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower(), one.version)
        for one in importlib.metadata.distributions(path=[str(PACKAGES)])
    }
    return [component("pypi", name, version) for name, version in sorted(found)]


def component(kind: str, name: str, version: str, architecture: str = "") -> dict:
    where = f"?arch={architecture}" if architecture else ""
    url = f"pkg:{kind}/{name}@{version}{where}"
    return {"type": "library", "name": name, "version": version, "purl": url, "bom-ref": url}


if __name__ == "__main__":
    main()
