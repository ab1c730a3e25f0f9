"""One JSON document to an address outside: only to hosts that the config lists, and nothing of the address gets out."""

import os
import re
import time
from collections.abc import Mapping
from typing import Any

import orjson

from towline.config import AlertConfig
from towline.http_request import HttpRequestError, send_request

SECONDS = 5.0  # for one try
PAUSES = (1.0, 2.0)  # seconds between tries


def post(config: AlertConfig, document: Mapping[str, Any]) -> str:
    """Posts to the webhook, three times at most; why it did not arrive, or an empty text.

    Redirects are not followed, since they lead to hosts that nobody listed; proxies of the environment are not used.
    The reason holds nothing of the address, which may be a secret.
    """
    try:
        url = _expanded(config.webhook or "")
        config.check(url)
    except ValueError as error:
        return str(error)
    body, why = orjson.dumps(document, default=str), ""
    for pause in (*PAUSES, None):
        try:
            status = send_request(url, SECONDS, body=body, headers=_HEADERS).status
        except HttpRequestError as error:
            why = str(error)
        else:
            if 200 <= status < 300:
                return ""
            why = "it redirects, which is not followed" if 300 <= status < 400 else f"it answers {status}"
            if status < 500 and status not in (408, 429):
                return why
        if pause is not None:
            time.sleep(pause)
    return why


_HEADERS = {"Content-Type": "application/json", "User-Agent": "towline-watch"}


def _expanded(url: str) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ValueError(f"the environment variable {match[1]} is not set")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", value, url)
