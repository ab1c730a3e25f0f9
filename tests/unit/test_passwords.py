"""A literal password in a source URL is hidden in the config, and used when the source is read."""

import os
from pathlib import Path

import pytest
from sqlalchemy import make_url

from towline.config import PipelineConfig, build_config, read_config
from towline.config.passwords import expand_variables, hide_passwords, mask_passwords

URLS = [
    "postgresql://me:s3cret@host/db",
    "postgresql://me:s3cret@host:5432/db?sslmode=require",
    "postgresql://:s3cret@host/db",
    "postgresql://me:p%40s3cret%2F@host/db",
    "postgresql://me:a?s3cret@host/db",
    "postgresql://host/db?user=me&password=s3cret",
    "postgresql://host/db?user=me&PASSWORD=s3cret&sslmode=require",
    "postgresql://me:s3cret@host/db?sslpassword=s3cret2",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BUID%3Dme%3BPWD%3Ds3cret",
    "snowflake://me@account/db?private_key_passphrase=s3cret&token=s3cret",
]


@pytest.mark.parametrize("url", URLS)
def test_a_literal_password_is_hidden_and_restored(url: str) -> None:
    """The config does not contain the password; the driver gets the original URL."""
    config = build_config({"name": "t", "data": {"source": {"url": url, "query": "q"}, "target": "y"}}, "")
    for shown in (config.model_dump_json(), repr(config), config.masked().model_dump_json(), mask_passwords(url)):
        assert "s3cret" not in shown
    hidden_url = config.data.source.url  # type: ignore[union-attr]
    assert make_url(expand_variables(hidden_url)) == make_url(url)
    assert PipelineConfig.model_validate(config.model_dump(mode="json")) == config


def test_the_config_does_not_depend_on_the_password() -> None:
    """Another password gives the same config; the name of the variable does not depend on it."""
    first, second = hide_passwords("postgresql://me:first@host/db"), hide_passwords("postgresql://me:second@host/db")
    assert first == second
    assert make_url(expand_variables(second)).password == "second"
    assert hide_passwords("postgresql://me:***@host/db") == "postgresql://me:***@host/db"
    assert make_url(expand_variables(second)).password == "second"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:${PW}@host/db",
        "postgresql://host/db?password=${PW}",
        "sqlite:///data/t.db",
        "postgresql://me@h/d",
    ],
)
def test_urls_without_a_literal_password_are_unchanged(url: str) -> None:
    """A reference to the environment is the recommended form: it is neither hidden nor masked."""
    assert hide_passwords(url) == url
    assert mask_passwords(url) == url


def test_a_password_may_contain_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password with a reference is hidden as a whole and expanded when it is used."""
    monkeypatch.setenv("HALF", "b@/c")
    url = hide_passwords("postgresql://me:a-${HALF}@host/db")
    assert "a-" not in url
    assert make_url(expand_variables(url)).password == "a-b@/c"


def test_a_password_with_an_at_sign() -> None:
    """A password with an @ that is not percent-encoded is hidden as a whole."""
    url = hide_passwords("postgresql://me:p@s3cret@host/db")
    assert "s3cret" not in url
    assert make_url(expand_variables(url)).password == "p@s3cret"


def test_the_error_of_another_process_has_a_remedy() -> None:
    """A process that does not have the password raises an error with the remedy."""
    url = hide_passwords("postgresql://me:s3cret@elsewhere/db")
    for name in [name for name in os.environ if name in url]:
        del os.environ[name]
    with pytest.raises(Exception, match=r"(?s)literal password.*write \$\{NAME\}"):
        expand_variables(url)


def test_a_literal_password_gives_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The warning recommends ${NAME} and does not contain the password."""
    path = tmp_path / "t.yaml"
    text = "name: t\ndata: {source: {url: 'postgresql://me:%s@h/d', query: q}, target: y}\n"
    path.write_text(text % "s3cret")
    read_config(path)
    assert "${NAME}" in caplog.text
    assert "s3cret" not in caplog.text
    caplog.clear()
    path.write_text(text % "${PW}")
    read_config(path)
    assert not caplog.text
