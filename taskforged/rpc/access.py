"""TokenService, SecretService and AuditService."""

from __future__ import annotations

from dataclasses import astuple, replace
from typing import Any

from taskforge.v1 import (
    audit_service_pb2 as audit_pb,
)
from taskforge.v1 import (
    audit_service_pb2_grpc as audit_base,
)
from taskforge.v1 import (
    secret_service_pb2 as secret_pb,
)
from taskforge.v1 import (
    secret_service_pb2_grpc as secret_base,
)
from taskforge.v1 import (
    token_pb2,
)
from taskforge.v1 import (
    token_service_pb2 as token_pb,
)
from taskforge.v1 import (
    token_service_pb2_grpc as token_base,
)

from taskforged.control.access import Access, Role
from taskforged.control.audit import Audit, AuditFilter
from taskforged.control.paging import decode_token, encode_token, page_size
from taskforged.control.secrets import Secrets
from taskforged.errors import InvalidArgumentError, PermissionDeniedError, Violation
from taskforged.rpc import convert
from taskforged.rpc.guard import caller

__all__ = ["AuditServicer", "SecretServicer", "TokenServicer"]


class TokenServicer(token_base.TokenServiceServicer):
    """Check, call control, convert."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def CreateToken(self, request: token_pb.CreateTokenRequest, _: Any) -> token_pb.CreateTokenResponse:
        ttl_s = convert.seconds(request.ttl) if request.HasField("ttl") else None
        role = _role(request.role)
        token, secret = await self._access.create(
            caller(), name=request.name, role=role, namespace=request.namespace, ttl_s=ttl_s
        )
        return token_pb.CreateTokenResponse(token=convert.token_to_proto(token, self._access), secret=secret)

    async def ListTokens(self, request: token_pb.ListTokensRequest, _: Any) -> token_pb.ListTokensResponse:
        size, filters = page_size(request.page_size), ["tokens", request.live_only]
        before = decode_token(request.page_token, filters, 0)
        found = self._access.page(caller(), before=before, limit=size + 1, live_only=request.live_only)
        page = found[:size]
        more = encode_token(page[-1].no, filters) if len(found) > size else ""
        tokens = [convert.token_to_proto(one, self._access) for one in page]
        return token_pb.ListTokensResponse(tokens=tokens, next_page_token=more)

    async def RotateToken(self, request: token_pb.RotateTokenRequest, _: Any) -> token_pb.RotateTokenResponse:
        token, secret = await self._access.rotate(
            caller(),
            request.token_id,
            grace_s=convert.seconds(request.grace),
            ttl_s=convert.seconds(request.ttl) if request.HasField("ttl") else None,
            request_id=request.request_id,
        )
        return token_pb.RotateTokenResponse(token=convert.token_to_proto(token, self._access), secret=secret)

    async def RevokeToken(self, request: token_pb.RevokeTokenRequest, _: Any) -> token_pb.RevokeTokenResponse:
        token = await self._access.revoke(caller(), request.token_id)
        return token_pb.RevokeTokenResponse(token=convert.token_to_proto(token, self._access))


def _role(value: int) -> Role:
    known = token_pb2.Token.Role.DESCRIPTOR.values_by_number.get(value)
    if known is None or known.number == 0:
        message = "must be one of admin, operator, trigger, viewer, worker"
        raise InvalidArgumentError(f"role {message}", violations=[Violation("role", message)])
    return Role(known.name.removeprefix("ROLE_").lower())


class AuditServicer(audit_base.AuditServiceServicer):
    """Check, call control, convert."""

    def __init__(self, audit: Audit, access: Access) -> None:
        self._audit = audit
        self._access = access

    async def ListAuditRecords(
        self, request: audit_pb.ListAuditRecordsRequest, _: Any
    ) -> audit_pb.ListAuditRecordsResponse:
        confined = bool(request.namespace) or caller().namespace_no is not None
        wanted = AuditFilter(
            self._access.enter(caller(), request.namespace) if confined else None,
            request.token,
            request.method,
            request.outcome.upper(),
            convert.micros(request.since) if request.HasField("since") else 0,
            convert.micros(request.until) if request.HasField("until") else 0,
        )
        size, filters = page_size(request.page_size), ["audit", *astuple(wanted)]
        before = decode_token(request.page_token, filters, 0)
        found = await self._audit.page(replace(wanted, before=before), size + 1)
        page = found[:size]
        more = encode_token(page[-1].no, filters) if len(found) > size else ""
        records = [convert.audit_to_proto(one, self._access) for one in page]
        return audit_pb.ListAuditRecordsResponse(records=records, next_page_token=more)


class SecretServicer(secret_base.SecretServiceServicer):
    """Check, call control, convert."""

    def __init__(self, secrets: Secrets, access: Access) -> None:
        self._secrets = secrets
        self._access = access

    async def SetSecret(self, request: secret_pb.SetSecretRequest, _: Any) -> secret_pb.SetSecretResponse:
        namespace_no = self._access.enter(caller(), request.namespace)
        if request.hosts and request.clear_hosts:
            message = "excludes hosts"
            raise InvalidArgumentError(f"clear_hosts {message}", violations=[Violation("clear_hosts", message)])
        hosts = list(request.hosts) if request.hosts or request.clear_hosts else None
        secret = await self._secrets.set(namespace_no, request.name, request.value, hosts=hosts)
        name = self._access.namespace_name(namespace_no)
        return secret_pb.SetSecretResponse(secret=convert.secret_to_proto(secret, name))

    async def ListSecrets(self, request: secret_pb.ListSecretsRequest, _: Any) -> secret_pb.ListSecretsResponse:
        namespace_no = self._access.enter(caller(), request.namespace)
        size, filters = page_size(request.page_size), ["secrets", namespace_no]
        after = decode_token(request.page_token, filters, "")
        found = await self._secrets.page(namespace_no, after=after, limit=size + 1)
        page = found[:size]
        more = encode_token(page[-1].name, filters) if len(found) > size else ""
        name = self._access.namespace_name(namespace_no)
        secrets = [convert.secret_to_proto(one, name) for one in page]
        return secret_pb.ListSecretsResponse(secrets=secrets, next_page_token=more)

    async def DeleteSecret(self, request: secret_pb.DeleteSecretRequest, _: Any) -> secret_pb.DeleteSecretResponse:
        await self._secrets.delete(self._access.enter(caller(), request.namespace), request.name)
        return secret_pb.DeleteSecretResponse()

    async def RotateMasterKey(
        self, _request: secret_pb.RotateMasterKeyRequest, _: Any
    ) -> secret_pb.RotateMasterKeyResponse:
        if caller().namespace_no is not None:
            raise PermissionDeniedError("a token that is confined to a namespace may not change the key of all")
        done = await self._secrets.rotate_key()
        return secret_pb.RotateMasterKeyResponse(
            key_id=done.key_id, previous_key_id=done.previous_key_id, secrets=done.total
        )
