"""The options --allowed-hosts and --cors-origins."""

import pytest

from towline.errors import ConfigError
from towline.serving.browser_access import check_hosts, check_origins


@pytest.mark.parametrize("name", ["api.example.com", "*.example.com", "*", "localhost", "my_host", "10.0.0.7", "[::1]"])
def test_valid_host_names_are_accepted(name: str) -> None:
    """A host name has the form of a Host header without a port."""
    check_hosts([name])


@pytest.mark.parametrize(
    "name", ["https://api.example.com", "api.example.com:443", "a/b", "*.*", "a.*.b", "", "a b", "::1"]
)
def test_an_invalid_host_name_is_refused(name: str) -> None:
    """The error names the option, the value and the correct form."""
    with pytest.raises(ConfigError, match="is not a host name") as error:
        check_hosts(["api.example.com", name])
    assert (error.value.where, repr(name) in error.value.what) == ("--allowed-hosts", True)
    assert "api.example.com" in error.value.remedy


@pytest.mark.parametrize("origin", ["https://app.example.com", "http://localhost:3000", "*", "http://[::1]:80"])
def test_valid_origins_are_accepted(origin: str) -> None:
    """An origin has the form in which browsers send it."""
    check_origins([origin])


@pytest.mark.parametrize(
    "origin", ["app.example.com", "https://app.example.com/", "https://*.example.com", "null", "", "ftp://a"]
)
def test_an_invalid_origin_is_refused(origin: str) -> None:
    """No browser would send it."""
    with pytest.raises(ConfigError, match="is not an origin") as error:
        check_origins([origin])
    assert error.value.where == "--cors-origins"
    assert "https://app.example.com" in error.value.remedy
