"""What may be given to --allowed-hosts and --cors-origins."""

import pytest

from towline.errors import ConfigError
from towline.serving.browser_access import check_hosts, check_origins


@pytest.mark.parametrize("name", ["api.example.com", "*.example.com", "*", "localhost", "my_host", "10.0.0.7", "[::1]"])
def test_names_of_hosts(name: str) -> None:
    """As a Host header has them, without a port."""
    check_hosts([name])


@pytest.mark.parametrize(
    "name", ["https://api.example.com", "api.example.com:443", "a/b", "*.*", "a.*.b", "", "a b", "::1"]
)
def test_what_is_no_host(name: str) -> None:
    """Refused when the service starts, with the option, the value and the form that is taken."""
    with pytest.raises(ConfigError, match="is not a host name") as caught:
        check_hosts(["api.example.com", name])
    assert (caught.value.where, repr(name) in caught.value.what) == ("--allowed-hosts", True)
    assert "api.example.com" in caught.value.remedy


@pytest.mark.parametrize("origin", ["https://app.example.com", "http://localhost:3000", "*", "http://[::1]:80"])
def test_origins(origin: str) -> None:
    """As a browser sends them."""
    check_origins([origin])


@pytest.mark.parametrize(
    "origin", ["app.example.com", "https://app.example.com/", "https://*.example.com", "null", "", "ftp://a"]
)
def test_what_is_no_origin(origin: str) -> None:
    """Refused when the service starts: it would never match."""
    with pytest.raises(ConfigError, match="is not an origin") as caught:
        check_origins([origin])
    assert caught.value.where == "--cors-origins"
    assert "https://app.example.com" in caught.value.remedy
