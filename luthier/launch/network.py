"""Which network interface reaches another machine. torch and NCCL take the first that they find otherwise."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from luthier.runtime.console import note
from luthier.runtime.env import read_plain, variable
from luthier.runtime.errors import RecipeError

__all__ = ["Interface", "interface_to", "on_interface", "split_address"]

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A network interface of this machine."""

    name: str
    address: str


def split_address(text: str) -> tuple[str, int]:
    """(host, port) of `host:port` or `[v6]:port`.

    Raises:
        RecipeError: it is neither.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise RecipeError(
            code="L103", message=f"`--rendezvous {text}` is no address", hint="host:port of machine 0, for instance "
            "10.0.0.1:29500",
        )  # fmt: skip
    return host, int(port)


def interface_to(host: str) -> Interface | None:
    """The interface whose address packets to `host` would have, by the routes of this machine; nothing is sent.

    None where the host has no address here, or no route, or the address is of no interface.
    """
    import psutil

    try:
        found = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
    except OSError:
        return None
    for family, kind, _, _, target in found:
        with socket.socket(family, kind) as probe:
            try:
                probe.connect(target)
            except OSError:
                continue
            address = str(probe.getsockname()[0])
        for name, addresses in psutil.net_if_addrs().items():
            if any(one.address.partition("%")[0] == address for one in addresses):
                return Interface(name=name, address=address)
    return None


@contextmanager
def on_interface(interface: Interface | None, *, reaches: str) -> Iterator[None]:
    """Tell gloo and NCCL (for its first contact) which interface to take; what the user set stays."""
    with ExitStack() as stack:
        for name in VARIABLES:
            given = read_plain(name)
            if given:
                note(f"  network: {name}={given}, as it is set", style="dim")
            elif interface is not None:
                stack.enter_context(variable(name, interface.name))
        if interface is not None:
            note(f"  network: {interface.name} ({interface.address}), by which {reaches} is reached", style="dim")
        yield
