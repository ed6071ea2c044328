"""Who the lab's servers say they are: vCenter and ESXi 8.0 Update 3, the API version that they speak."""

from __future__ import annotations

from pyVmomi import vim

from lab.vcenter.soap import API_VERSION

_VERSION, _BUILD = "8.0.3", "24322831"
_NAMES = {"VirtualCenter": ("VMware vCenter Server", "vpx"), "HostAgent": ("VMware ESXi", "embeddedEsx")}


def about(api_type: str, instance_uuid: str) -> vim.AboutInfo:
    """api_type: "VirtualCenter" or "HostAgent"."""
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
        apiVersion=API_VERSION,
        instanceUuid=instance_uuid,
    )
