"""The sockets a service listens on, and how they stop without dropping who is already in the queue."""

import contextlib
import ctypes
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Sequence

from towline.errors import ConfigError

_ATTACH_FILTER = 26  # SO_ATTACH_FILTER, which the socket module does not name
# classic BPF over the TCP header: a packet whose flags are SYN without ACK is dropped, all others pass
_DROP_SYN = ((0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))


def bind(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of a host, not listening yet; port 0 takes a free one, the same for all.

    Raises:
        ConfigError: the host is not this machine's, or the port is taken or not allowed.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"no such host: {error.strerror}", where=host, remedy="give an address to --host") from None
    sockets: list[socket.socket] = []
    for family, address in dict.fromkeys((one[0], one[4]) for one in found):
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken = sockets[0].getsockname()[1] if sockets else port
        try:
            listener.bind((address[0], taken, *address[2:]))
            listener.listen()  # two that bind the same port are told apart only here
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRNOTAVAIL and sockets:
                continue  # a name may have an address of a family this machine has not
            for other in sockets:
                other.close()
            raise _refused(error, host, port) from None
        listener.setblocking(False)
        sockets.append(listener)
    return sockets


def open_to_others(sockets: Sequence[socket.socket]) -> bool:
    """Whether another machine may reach one of them."""
    return not all(ipaddress.ip_address(one.getsockname()[0].partition("%")[0]).is_loopback for one in sockets)


def refuse_new(sockets: Sequence[socket.socket]) -> None:
    """Drops new connections before they enter the queue, so that it can be emptied and closed with nobody in it.

    Whoever tries meanwhile is not answered, tries again a second later, and is refused then or served elsewhere.
    Where the system has no such filter, nothing is changed.
    """
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in _DROP_SYN))
    program = struct.pack("HL", len(_DROP_SYN), ctypes.addressof(code))
    for one in sockets:
        with contextlib.suppress(OSError):
            one.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)


def _refused(error: OSError, host: str, port: int) -> ConfigError:
    remedies = {
        errno.EADDRINUSE: "end the process that has it, or give another --port (0 takes a free one)",
        errno.EACCES: "give a --port above 1023",
        errno.EADDRNOTAVAIL: "give an address of this machine to --host",
    }
    return ConfigError(
        f"cannot listen: {os.strerror(error.errno or 0)}",
        where=f"{host}:{port}",
        remedy=remedies.get(error.errno or 0, "give another --host or --port"),
    )
