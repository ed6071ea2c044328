"""HTTPS on loopback: `/sdk`, `/folder`, the REST API, and the port of an ESXi host."""
