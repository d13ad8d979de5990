"""What answers: MLflow, the hubs and their mirrors. Nodes are expected to reach none."""

import os
from collections.abc import Iterator
from pathlib import Path

from siftune import redaction
from siftune.doctor import filesystem, packages, place, project
from siftune.doctor.finding import OK, WARNING, Finding

SECONDS = 1.0
# Where packages, models and data come from, and through what.
MIRRORS = (
    "HF_ENDPOINT", "MODELSCOPE_DOMAIN", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS",
    "UV_INDEX_URL", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy",
)  # fmt: skip


def mlflow() -> Iterator[Finding]:
    """The store that stages mirror their runs to."""
    if not packages.has_stack():
        return
    from siftune import store

    address = store.address()
    shown = redaction.text(address)
    if address.startswith("sqlite:"):
        kind, _ = filesystem.mount(Path(address.removeprefix("sqlite:///")))
        if filesystem.SHARED.search(kind):
            yield Finding(
                WARNING, "MLflow", f"{shown} is on {kind}, which several machines share",
                "Set MLFLOW_TRACKING_URI to a server before you run more than one job at a time.",
            )  # fmt: skip
        else:
            yield Finding(OK, "MLflow", shown)
        return
    try:
        answers = _answers(address)
    except OSError as error:
        yield Finding(
            WARNING, "MLflow", f"{shown} does not answer: {store.reason(error)}",
            "Trainings log to files, and `siftune sync` completes MLflow later; only `register` "
            "needs it.",
        )  # fmt: skip
    else:
        yield Finding(OK, "MLflow", f"{shown} {answers}")


def hubs() -> Iterator[Finding]:
    """Mirrors and proxies that are set; where something is to be fetched, whether a hub answers."""
    given = [f"{name}={redaction.text(os.environ[name])}" for name in MIRRORS if name in os.environ]
    if given:
        yield Finding(OK, "mirrors", ", ".join(given))
    if place.in_job() or all(one.level == OK for one in project.offline()):
        return
    from siftune import hubs, store

    address = os.environ.get("HF_ENDPOINT") or hubs.HUB
    try:
        yield Finding(OK, "hub", f"{redaction.text(address)} {_answers(address)}")
    except OSError as error:
        yield Finding(
            WARNING, "hub", f"{redaction.text(address)} does not answer: {store.reason(error)}",
            "Set HF_ENDPOINT to a mirror, or fetch it where there is a network and carry it here "
            "(`siftune bundle`).",
        )  # fmt: skip


def _answers(address: str) -> str:
    from siftune import store

    asked = store.knock(address, seconds=SECONDS)
    return "answers" if asked else "is behind a proxy, and was not asked"
