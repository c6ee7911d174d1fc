"""Python imports this at its start wherever this folder is on the path: only loopback and local sockets may be used.

Whoever tries to leave is stopped, and named in the file that `CLOSED_NETWORK_LOG` points to.
"""

import ipaddress
import os
import sys
from pathlib import Path
from typing import Any

LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
SENDS = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind")


def is_local(host: Any) -> bool:
    if host in (None, "", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(host if isinstance(host, str) else host.decode()).is_loopback
    except (ValueError, AttributeError):
        return False


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event in LOOKUPS:
        host = arguments[0]
    elif event in SENDS and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if not is_local(host):
        with Path(os.environ["CLOSED_NETWORK_LOG"]).open("a") as log:
            log.write(f"{event} {arguments!r} by {sys.argv}\n")
        raise PermissionError(f"the network is closed: {event} {host!r}")


sys.addaudithook(watch)
