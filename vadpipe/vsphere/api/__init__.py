"""The connection to a vCenter or an ESXi host: session, certificates, calls, tasks, faults as our errors."""
