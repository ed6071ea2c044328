"""Who the lab's servers say they are: vCenter and ESXi 8.0 Update 3, the API version that they speak."""

from __future__ import annotations

from typing import Literal

from pyVmomi import vim

from .soap import API_VERSION

ApiType = Literal["VirtualCenter", "HostAgent"]
_VERSION, _BUILD = "8.0.3", "24322831"
_NAMES = {"VirtualCenter": ("VMware vCenter Server", "vpx"), "HostAgent": ("VMware ESXi", "embeddedEsx")}


def about(api_type: ApiType, instance_uuid: str, api_version: str = API_VERSION) -> vim.AboutInfo:
    """api_type: "HostAgent" for an ESXi host."""
    name, product_line = _NAMES[api_type]
    return vim.AboutInfo(
        name=name,
        fullName=f"{name} {_VERSION} build-{_BUILD} (vadpipe lab)",
        vendor="VMware, Inc.",
        version=_VERSION,
        build=_BUILD,
        localeVersion="INTL",
        localeBuild="000",
        osType="linux-x64",
        productLineId=product_line,
        apiType=api_type,
        apiVersion=api_version,
        instanceUuid=instance_uuid,
    )
