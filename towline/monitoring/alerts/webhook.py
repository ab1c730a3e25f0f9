"""Webhook delivery: posts a JSON document to an address of the config, only to listed hosts, without revealing it."""

import os
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from towline.config import AlertConfig
from towline.http_request import HttpRequestError, send_request

TIMEOUT = 5.0  # seconds per attempt
PAUSES = (1.0, 2.0)  # seconds between attempts
_HEADERS = {"Content-Type": "application/json", "User-Agent": "towline-monitoring"}


class DeliveryFailure(NamedTuple):
    """Why the webhook did not accept an alert; the reason does not contain the address, which may be a secret.

    ``rejects_alert``: the webhook works, but not with this alert; it may accept another one.
    """

    reason: str
    rejects_alert: bool = False


def post_webhook(config: AlertConfig, document: Mapping[str, Any]) -> DeliveryFailure | None:
    """Posts to the webhook, at most three times; returns why it failed, or None.

    Redirects are not followed, since they may lead to hosts that are not listed; proxies of the environment are not
    used.
    """
    try:
        url = _expand_variables(config.webhook or "")
        config.check(url)
    except ValueError as error:
        return DeliveryFailure(str(error))
    body, why = orjson.dumps(document, default=str), ""
    for pause in (*PAUSES, None):
        try:
            status = send_request(url, TIMEOUT, body=body, headers=_HEADERS).status
        except HttpRequestError as error:
            why = str(error)
        else:
            if 200 <= status < 300:
                return None
            why = "it redirects, which is not followed" if 300 <= status < 400 else f"it returns {status}"
            if status < 500 and status not in (408, 429):
                return DeliveryFailure(why, rejects_alert=status >= 400)
        if pause is not None:
            time.sleep(pause)
    return DeliveryFailure(why)


def _expand_variables(url: str) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ValueError(f"the environment variable {match[1]} is not set")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", value, url)
