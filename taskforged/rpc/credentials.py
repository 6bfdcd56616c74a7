"""What gRPC's TCP listener needs of the daemon's certificate."""

from __future__ import annotations

from typing import Any

import grpc

from taskforged.tls import Certificates, Identity

__all__ = ["server_credentials"]


def server_credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """Answer credentials that ask for the certificate at each handshake. gRPC refuses TLS below 1.2 by itself."""
    served = certificates.current()

    def fetch() -> Any:  # its stubs do not know that None keeps the last one
        """Called by threads of gRPC."""
        nonlocal served
        identity = certificates.current()
        if identity is served:
            return None
        served = identity
        return _configuration(identity)

    return grpc.dynamic_ssl_server_credentials(_configuration(served), fetch, certificates.asks_clients)


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(identity.key, identity.chain)], identity.client_ca)
