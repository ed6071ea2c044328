"""The protocol: SOAP on pyVmomi's codec, managed objects, sessions, tasks and the property collector."""
