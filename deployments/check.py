"""Asks an address on this machine, with CHECK_AUTH (name:password) where it is set; ends with 0 if it answers well."""

import base64
import os
import sys
import urllib.error
import urllib.request

request = urllib.request.Request(sys.argv[1])  # noqa: S310 - an address of the stack
if given := os.environ.get("CHECK_AUTH"):
    request.add_header("Authorization", "Basic " + base64.b64encode(given.encode()).decode())
try:
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=8).close()
except urllib.error.HTTPError as error:
    sys.exit(f"{sys.argv[1]}: {error.code}" if error.code != 404 else 0)
except OSError as error:
    sys.exit(f"{sys.argv[1]}: {error}")
