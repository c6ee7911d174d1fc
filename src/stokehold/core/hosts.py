"""Which names a server may be called by, against pages that point a name of their own at this machine (DNS rebinding).

Pure: the caller says what the machine is called.
"""

import ipaddress
from urllib.parse import urlsplit

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def host_name(host: str) -> str:
    """A Host header without its port, an IPv6 address without its brackets; empty where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether this address can be reached from this machine only."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def answers_to(name: str, listening: str, machine: str) -> bool:
    """Whether a server that listens on `listening`, on a machine called `machine`, may be asked under `name`.

    Beyond loopback clients come by address or by the machine's own name; rebinding needs another name.
    """
    if name in LOOPBACK_NAMES or (name and name == listening):
        return True
    return not is_loopback(listening) and (_address(name) is not None or name == machine.lower())


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
