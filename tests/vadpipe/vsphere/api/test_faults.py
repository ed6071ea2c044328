"""Foreign errors become ours: sound exceptions with cause, meaning and remedy."""

import http.client
import pickle
import socket
from xml.parsers.expat import ExpatError

import pytest
from pyVmomi import vim, vmodl

from pipeline.errors import SourceError
from vadpipe.vsphere.api import faults
from vadpipe.vsphere.api.faults import QuiesceFailed, SnapshotError, translate

QUIESCE_TEXT = "An error occurred while saving the snapshot: Failed to quiesce the virtual machine."


@pytest.mark.parametrize(
    ("fault", "expected", "transient"),
    [
        (vim.fault.InvalidLogin(), faults.LoginRefused, False),
        (vim.fault.NotAuthenticated(), faults.SessionExpired, False),
        (
            vim.fault.NoPermission(privilegeId="VirtualMachine.State.CreateSnapshot"),
            faults.VsphereError,
            False,
        ),
        (vmodl.fault.ManagedObjectNotFound(), faults.ObjectGone, False),
        (vmodl.fault.NotSupported(), faults.NotOffered, False),
        (vmodl.fault.MethodNotFound(), faults.NotOffered, False),
        (vim.fault.ApplicationQuiesceFault(), QuiesceFailed, False),
        (vim.fault.FilesystemQuiesceFault(), QuiesceFailed, False),
        (vim.fault.ToolsUnavailable(), QuiesceFailed, False),
        (vim.fault.TaskInProgress(), faults.Busy, True),
        (vim.fault.FileLocked(), faults.Busy, True),
        (vim.fault.TooManySnapshotLevels(), SnapshotError, False),
        (vim.fault.SnapshotNoChange(), SnapshotError, False),  # by its ancestor SnapshotFault
        (vim.fault.NoDiskSpace(datastore="ds1"), SourceError, False),
        (vim.fault.RestrictedVersion(), faults.VsphereError, False),  # in no table: the general case
    ],
)
def test_a_fault_becomes_the_error_of_its_kind(fault, expected, transient):
    error = translate(fault, "SomeCall", "vc01")
    assert type(error) is expected
    assert error.transient is transient
    assert error.facts["call"] == "SomeCall"
    assert error.facts["fault"] == type(fault).__name__.rpartition(".")[2]
    assert "vc01" in str(error)


def test_the_error_of_a_fault_is_a_sound_exception():
    error = translate(vim.fault.NoPermission(privilegeId="Datastore.Browse", msg="Denied."), "Call", "vc01")
    assert error.__cause__ is None
    assert error.__context__ is None
    error.add_note("a note")
    assert "Datastore.Browse" in str(error)
    assert "Denied" in str(error)
    pickle.dumps(error.facts)


def test_a_failed_quiesce_in_a_general_fault_is_recognised():
    for fault in (vim.fault.SnapshotFault(msg=QUIESCE_TEXT), vmodl.fault.SystemError(msg=QUIESCE_TEXT)):
        assert type(translate(fault, "CreateSnapshot_Task", "vc01")) is QuiesceFailed
        assert type(translate(fault, "RemoveSnapshot_Task", "vc01")) is not QuiesceFailed


def test_a_refused_login_whose_text_mentions_quiescing_stays_a_refused_login():
    fault = vim.fault.InvalidLogin(msg="cannot quiesce")
    assert type(translate(fault, "CreateSnapshot_Task", "vc01")) is faults.LoginRefused


@pytest.mark.parametrize(
    ("exc", "words"),
    [
        (socket.gaierror(-2, "Name or service not known"), "cannot be resolved"),
        (ConnectionRefusedError(111, "Connection refused"), "does not answer"),
        (TimeoutError(), "timed out"),
        (ConnectionResetError(104, "Connection reset by peer"), "was lost"),
        (http.client.HTTPException("503 Service Unavailable"), "503"),
    ],
)
def test_a_broken_connection_is_transient_and_keeps_its_cause(exc, words):
    error = translate(exc, "Call", "vc01")
    assert isinstance(error, faults.ConnectionLost)
    assert error.transient
    assert error.__cause__ is exc
    assert words in str(error)


def test_an_answer_without_xml_is_an_error_of_its_own():
    error = translate(ExpatError("no element found"), "Call", "vc01")
    assert type(error) is faults.VsphereError
    assert "no answer of vSphere" in str(error)
