"""The server's own answer: secrets blotted, all else byte for byte; read with what is newer left out by name."""

from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyVmomi import vim

from vadpipe.vmdk.vmx import REDACTED
from vadpipe.vsphere.inventory.raw_config import NotAConfigurationError, blotted, parse_config

HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" '
    'xmlns:xsd="http://www.w3.org/2001/XMLSchema" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
    '<soapenv:Body><RetrievePropertiesExResponse xmlns="urn:vim25"><returnval><objects>'
    '<obj type="VirtualMachineSnapshot">snapshot-1</obj><propSet><name>config</name>'
    '<val xsi:type="VirtualMachineConfigInfo">'
)
TAIL = "</val></propSet></objects></returnval></RetrievePropertiesExResponse></soapenv:Body></soapenv:Envelope>\n"


def answer(inside: str) -> bytes:
    return f"{HEAD}{inside}{TAIL}".encode()


def setting(key: str, value: str) -> str:
    option = f'<key>{escape(key)}</key><value xsi:type="xsd:string">{escape(value)}</value>'
    return f"<extraConfig>{option}</extraConfig>"


def test_secret_values_are_replaced_and_nothing_else():
    plain = answer("<name>web  01</name>" + setting("disk.EnableUUID", "TRUE"))
    assert blotted(plain) == (plain, [])
    document, names = blotted(
        answer(
            setting("guestinfo.userdata", "a<&b")
            + setting("RemoteDisplay.vnc.password", "hunter2")
            + "<annotation>see ftp://u:hunter2@host/</annotation>"
            + setting("disk.EnableUUID", "TRUE")
        )
    )
    assert names == ["guestinfo.userdata", "RemoteDisplay.vnc.password", "annotation"]
    assert b"hunter2" not in document
    assert b"a&lt;" not in document
    expected = (
        setting("guestinfo.userdata", REDACTED)
        + setting("RemoteDisplay.vnc.password", REDACTED)
        + f"<annotation>{REDACTED}</annotation>"
        + setting("disk.EnableUUID", "TRUE")
    )
    assert document == answer(expected)


def test_values_of_vapp_properties_are_judged_by_name_and_type():
    inside = (
        "<vAppConfig><property><key>1</key><id>ip</id><type>string</type><value>10.0.0.1</value></property>"
        "<property><key>2</key><id>x</id><type>password(..8)</type><value>s3cret</value></property>"
        "<property><key>3</key><id>admin_password</id><defaultValue>s3cret</defaultValue></property></vAppConfig>"
    )
    document, names = blotted(answer(inside))
    assert b"s3cret" not in document
    assert b"10.0.0.1" in document
    assert names == ["x", "admin_password"]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["guestinfo.a", "my.setting", "x.password"]),
            st.text(alphabet="a<>&é€'\"\n]", max_size=20),
        )
    )
)
def test_only_the_bytes_of_secret_values_change(options):
    inside = "".join(setting(key, value) for key, value in options)
    kept = "".join(
        setting(key, REDACTED if value and key != "my.setting" else value) for key, value in options
    )
    assert blotted(answer(inside))[0] == answer(kept)


@pytest.mark.parametrize(
    "document",
    [b"", b"<a>", b"no xml", b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', b"<a/>", b"\xff\xfe"],
)
def test_what_is_no_answer_is_refused(document):
    with pytest.raises(NotAConfigurationError):
        blotted(document)
        parse_config(document)


def test_a_newer_servers_answer_is_read_and_what_is_unknown_is_named():
    inside = (
        "<changeVersion>1</changeVersion><modified>2026-01-02T03:04:05.678Z</modified><name>a&amp;b</name>"
        "<quantum><deep>1</deep></quantum><hardware><numCPU>2</numCPU><memoryMB>4</memoryMB>"
        '<device xsi:type="ParaVirtualSCSIController"><key>1000</key><busNumber>0</busNumber><device>2000</device>'
        "<device>2001</device><sharedBus>quantumSharing</sharedBus></device>"
        '<device xsi:type="VirtualQuantum"><key>77</key>'
        "<deviceInfo><label>Q</label><summary>s</summary></deviceInfo>"
        "<spin>1</spin></device>"
        '<device xsi:type="VirtualDisk"><key>2000</key>'
        '<backing xsi:type="VirtualDiskFlatVer2BackingInfo"><fileName>[ds] a/a.vmdk</fileName>'
        '<datastore type="Datastore">datastore-1</datastore><diskMode>persistent</diskMode></backing>'
        "<controllerKey>1000</controllerKey><unitNumber>0</unitNumber><capacityInKB>8</capacityInKB></device></hardware>"
        + setting("svga.present", "TRUE")
    )
    parsed = parse_config(answer(inside))
    config = parsed.config
    assert config.name == "a&b"
    assert config.modified.year == 2026
    controller, quantum, disk = config.hardware.device
    assert isinstance(controller, vim.vm.device.ParaVirtualSCSIController)
    assert controller.device == [2000, 2001]
    assert (type(quantum), quantum.deviceInfo.label) == (vim.vm.device.VirtualDevice, "Q")
    assert disk.backing.datastore._moId == "datastore-1"
    assert config.extraConfig[0].value == "TRUE"
    assert parsed.unknown_devices == {77: "VirtualQuantum"}
    assert set(parsed.unknown) == {
        "quantum",
        "hardware.device.sharedBus=quantumSharing",
        "VirtualQuantum",
        "hardware.device.spin",
    }


def test_an_answer_with_values_of_other_types_is_refused():
    with pytest.raises(NotAConfigurationError, match="another type"):
        parse_config(answer("<hardware><numCPU>two</numCPU></hardware>"))
