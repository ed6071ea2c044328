"""The command serve: the disks of a point as block devices, until a signal."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

import click
import trio

from pipeline.errors import EXIT_ATTENTION, EXIT_DONE, ConfigError
from pipeline.units import format_size
from sinks.images import image_name
from sinks.restoring import disks_of
from vadpipe.nbd.server import Address, Server, tls_server, tls_with_shared_keys
from vadpipe.repository.format.restore_point import RestorePoint, StoredDisk
from vadpipe.serve import serve_point

from .commands import OnRepository, disk_option, json_option, point_argument, repository_argument, vm_option
from .maintenance import parse_size
from .output import is_verbose, report, show
from .process import Interrupted, run_async
from .repository import opened_point

_QCOW2 = ".qcow2"


@click.command(cls=OnRepository)
@repository_argument
@point_argument
@vm_option
@disk_option
@click.option(
    "--listen",
    metavar="HOST[:PORT]",
    help="Where to listen; by default 127.0.0.1:10809. Port 0 is any free one. Other machines need TLS.",
)
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Listen on this Unix socket instead; only its owner may use it.",
)
@click.option(
    "--tls-certificate",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Require TLS, with this certificate (PEM).",
)
@click.option("--tls-key", type=click.Path(path_type=Path), metavar="FILE", help="Its key (PEM).")
@click.option(
    "--tls-ca",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Only for clients with a certificate by this authority (PEM).",
)
@click.option(
    "--tls-psk",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Require TLS with shared keys instead: lines of NAME:HEXADECIMAL-KEY. Needs Python 3.13.",
)
@click.option(
    "--writable", is_flag=True, help="Clients may write; what they write is thrown away at the end."
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    metavar="FILE.qcow2|DIR",
    help="With --writable: keep what they write as qcow2 images over the served disks.",
)
@click.option("--cache", metavar="SIZE", default="256MiB", show_default=True, help="Memory for decoded data.")
@json_option
def serve(
    repository: str,
    point: str,
    vm: str | None,
    keys: tuple[str, ...],
    listen: str | None,
    socket: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    tls_ca: Path | None,
    tls_psk: Path | None,
    writable: bool,
    keep: Path | None,
    cache: str,
    as_json: bool,
) -> int:
    """Serve the disks of a restore point as block devices, over NBD.

    POINT is an id, a unique prefix of one, or `latest`. Each disk has a URI, which is printed; qemu, nbd-client,
    nbdcopy and guestfish read it. Every byte is proved as in a restore; what is damaged is an I/O error, and is
    named on standard error. It ends on SIGINT or SIGTERM, with exit code 0, or 3 after such an error.

    \b
    vadpipe serve /srv/backup latest --vm web01
    qemu-img convert nbd://127.0.0.1:10809/scsi0:0 web01.qcow2
    """
    if listen is not None and socket is not None:
        raise ConfigError("--listen and --socket exclude each other.", remedy="Leave one out.")
    if keep is not None and not writable:
        raise ConfigError("--keep keeps what clients write.", remedy="Add --writable, or leave it out.")
    where = socket if socket is not None else Address.parse(listen) if listen is not None else Address()
    tls = _tls(tls_certificate, tls_key, tls_ca, tls_psk)
    size = parse_size(cache)
    unread: list[str] = []

    def tell(text: str) -> None:
        unread.append(text)
        if not is_verbose():  # then the log has it
            report(text)

    async def work() -> None:
        async with opened_point(repository, point, vm) as (reader, found):
            disks = disks_of(found, keys)
            async with serve_point(
                reader,
                found,
                keys=[disk.key for disk in disks],
                listen=where,
                tls=tls,
                writable=writable,
                keep=_images(disks, keep),
                cache=size,
                tell=tell,
            ) as server:
                _show(server, found, disks, as_json)
                await trio.sleep_forever()

    with suppress(Interrupted):  # the ordinary end
        run_async(work)
    return EXIT_ATTENTION if unread else EXIT_DONE


def _show(server: Server, point: RestorePoint, disks: list[StoredDisk], as_json: bool) -> None:
    document = {
        "point": point.id,
        "disks": [
            {"key": disk.key, "capacity": disk.capacity, "uri": server.uri(disk.key)} for disk in disks
        ],
    }
    lines = [f"disk {disk.key}: {format_size(disk.capacity)} at {server.uri(disk.key)}" for disk in disks]
    show(document, lines, as_json)


def _tls(
    certificate: Path | None, key: Path | None, clients: Path | None, shared: Path | None
) -> ssl.SSLContext | None:
    """The settings that these options mean. Raises ConfigError."""
    if shared is not None:
        if certificate or key or clients:
            raise ConfigError(
                "--tls-psk excludes certificates.", remedy="Leave --tls-psk or the other --tls options out."
            )
        return tls_with_shared_keys(shared)
    if certificate is None and key is None and clients is None:
        return None
    if certificate is None or key is None:
        raise ConfigError(
            "TLS needs a certificate and its key.", remedy="Add --tls-certificate and --tls-key."
        )
    return tls_server(certificate, key, clients)


def _images(disks: list[StoredDisk], keep: Path | None) -> dict[str, Path]:
    """Where the changes of each disk are kept. Raises ConfigError."""
    if keep is None:
        return {}
    if keep.suffix == _QCOW2:
        if len(disks) > 1:
            raise ConfigError(
                f"{len(disks)} disks cannot be kept in one file.",
                remedy=f"Name a directory, or one disk: --disk {disks[0].key}.",
            )
        return {disks[0].key: keep}
    if not keep.is_dir():
        raise ConfigError(f"{keep} is no directory.", remedy=f"Make it, or name a file FILE{_QCOW2}.")
    return {disk.key: keep / f"{image_name(disk.key)}{_QCOW2}" for disk in disks}
