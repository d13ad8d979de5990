"""Secrets stay out of what is written and printed: passwords in addresses, tokens in variables."""

import os
import re
from typing import Any
from urllib.parse import quote, unquote

HIDDEN = "***"

# scheme://user:password@host, whatever characters the password has.
_USER = re.compile(r"(?<=://)[^\s'\"<>]*@")
_QUERY = re.compile(
    r"(?i)([?&][\w.-]*(?:token|password|passwd|secret|signature|credential|key|sig)=)[^&\s'\"<>]+"
)
_SECRET_VARIABLE = re.compile(
    r"(?i)(token|password|passwd|secret|credentials?|api_?key|access_key)$"
)
_SHORTEST = 6  # a shorter value stands in any text by chance


def text(value: str) -> str:
    """The text without passwords in its addresses and without values of secret variables."""
    for secret in sorted(_known(), key=len, reverse=True):
        value = value.replace(secret, HIDDEN)
    return _QUERY.sub(rf"\1{HIDDEN}", _USER.sub(f"{HIDDEN}@", value))


def tree(value: Any) -> Any:
    """The same JSON value with every text in it redacted."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict):
        return {key: tree(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [tree(entry) for entry in value]
    return value


def _known() -> set[str]:
    """The secrets of the environment, as they are and as an address spells them."""
    found = {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name)}
    for address in os.environ.values():
        if user := _USER.search(address):
            found |= {unquote(user[0][:-1].partition(":")[2]), user[0][:-1].partition(":")[2]}
    found |= {quote(secret, safe="") for secret in found}
    return {secret for secret in found if len(secret) >= _SHORTEST}
