"""What must not be read anywhere: 30 secrets through addresses and variables."""

import pytest

from siftune import redaction

PASSWORDS = ["hunter2-hunter2", "p@ss/w:rd#1", "ä%C3%A4 blank", "semi;quote'"]


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize(
    "template",
    [
        "https://ann:{}@mlflow.example/path",
        "no answer from postgresql+psycopg2://ann:{}@db:5432/mlflow (refused)",
        "token {} is wrong",
    ],
)
def test_the_password_of_the_server_is_in_no_text(monkeypatch, password, template):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    told = redaction.text(template.format(password))
    assert password not in told
    assert redaction.HIDDEN in told


def test_the_password_of_the_address_is_known_however_it_is_spelled(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:p%40ss%2Fword@mlflow.example")
    for spelled in ("p%40ss%2Fword", "p@ss/word"):
        assert redaction.text(f"refused: {spelled}") == f"refused: {redaction.HIDDEN}"


@pytest.mark.parametrize(
    "name", ["token", "api_key", "X-Amz-Signature", "password", "access_token", "sig"]
)
def test_a_token_in_an_address_is_hidden_in_params(name):
    params = {"data": {"train": [f"https://host/a.jsonl?rows=5&{name}=canary-1234&b=2"]}}
    assert redaction.tree(params) == {
        "data": {"train": [f"https://host/a.jsonl?rows=5&{name}={redaction.HIDDEN}&b=2"]}
    }


def test_the_password_of_an_address_that_no_variable_knows_is_hidden():
    params = {"data": {"train": "https://ann:canary-5678@host.example/a.jsonl"}}
    assert redaction.tree(params) == {"data": {"train": "https://***@host.example/a.jsonl"}}


def test_what_is_no_secret_stays(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("SHORT_TOKEN", "ab")
    params = {"a": "abc is false", "b": 1, "c": None, "d": ["sqlite:///mlflow.db", "x@y.example"]}
    assert redaction.tree(params) == params
