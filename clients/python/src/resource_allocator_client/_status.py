"""From gRPC's errors to ours: reads the details of a status, and finds words where there are none."""

from __future__ import annotations

from datetime import timedelta

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from .errors import DOMAIN, Disposition, FieldViolation, ResourceAllocatorError, error_of
from .v1 import resource_allocator_pb2 as api

# Where a status with its details travels.
_DETAILS = "grpc-status-details-bin"

# What the service's transport says, with CANCELLED, where it is the first to notice that a deadline passed.
_TIMEOUT_EXPIRED = "Timeout expired"

# What an error means that no service of ours described: it is the transport's, a proxy's, or of something else that listens.
_BY_CODE: dict[grpc.StatusCode, tuple[str, Disposition]] = {
    grpc.StatusCode.UNAVAILABLE: ("UNREACHABLE", Disposition.TECHNICAL),
    grpc.StatusCode.DEADLINE_EXCEEDED: ("DEADLINE_PASSED", Disposition.TECHNICAL),
    grpc.StatusCode.CANCELLED: ("CANCELLED", Disposition.TECHNICAL),
    grpc.StatusCode.UNIMPLEMENTED: ("NOT_IMPLEMENTED", Disposition.CALLER),
    grpc.StatusCode.UNAUTHENTICATED: ("UNAUTHENTICATED", Disposition.CALLER),
    grpc.StatusCode.PERMISSION_DENIED: ("FORBIDDEN", Disposition.CALLER),
    grpc.StatusCode.INTERNAL: ("INTERNAL", Disposition.TECHNICAL),
}


# The codes by their numbers, as a status inside of an answer has them.
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def read_error(error: grpc.RpcError, endpoint: str) -> ResourceAllocatorError:
    """Gives the exception that an error of a call stands for; `endpoint` is where the call went."""
    code, message = _code_and_message(error)
    return _error_of(code, message, _status(error), endpoint)


def result_of(result: api.BatchEnsureResult, endpoint: str) -> api.EnsureAllocationResponse | ResourceAllocatorError:
    """Gives what became of one request of a batch."""
    if result.WhichOneof("result") == "response":
        return result.response
    code = _CODES.get(result.status.code, grpc.StatusCode.UNKNOWN)
    return _error_of(code, result.status.message, result.status, endpoint)


def _error_of(code: grpc.StatusCode, message: str, status: status_pb2.Status, endpoint: str) -> ResourceAllocatorError:
    info, retry_after, violations = _details(status)
    if info is None or info.domain != DOMAIN:
        return _of_transport(code, message, endpoint)
    metadata = dict(info.metadata)
    return error_of(
        message,
        reason=info.reason,
        disposition=_disposition(metadata.get("disposition", ""), code),
        code=code,
        metadata=metadata,
        retry_after=retry_after,
        field_violations=violations,
    )


def _code_and_message(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    # Every error of a call is also the call; gRPC's types do not say so.
    code = error.code() if isinstance(error, (grpc.Call, grpc.aio.AioRpcError)) else grpc.StatusCode.UNKNOWN
    message = error.details() if isinstance(error, (grpc.Call, grpc.aio.AioRpcError)) else str(error)
    return code or grpc.StatusCode.UNKNOWN, message or ""


def _details(
    status: status_pb2.Status,
) -> tuple[error_details_pb2.ErrorInfo | None, timedelta | None, list[FieldViolation]]:
    info: error_details_pb2.ErrorInfo | None = None
    retry_after: timedelta | None = None
    violations: list[FieldViolation] = []
    for detail in status.details:
        told = error_details_pb2.ErrorInfo()
        retry = error_details_pb2.RetryInfo()
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(told):
            info = told
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta()
        elif detail.Unpack(bad):
            violations += [FieldViolation(field.field, field.description) for field in bad.field_violations]
    return info, retry_after, violations


def _status(error: grpc.RpcError) -> status_pb2.Status:
    # grpc_status raises where message and details disagree, which a proxy that rewrites one of them would cause: what the
    # service told is still worth reading.
    if isinstance(error, (grpc.Call, grpc.aio.AioRpcError)):
        for key, value in error.trailing_metadata() or ():
            if key == _DETAILS and isinstance(value, bytes):
                try:
                    return status_pb2.Status.FromString(value)
                except DecodeError:
                    break
    return status_pb2.Status()


def _disposition(named: str, code: grpc.StatusCode) -> Disposition:
    """Reads the disposition. One that this release does not know follows from the code, and is never taken for a hint to repeat."""
    try:
        return Disposition(named)
    except ValueError:
        return _BY_CODE.get(code, ("", Disposition.CALLER))[1]


def _of_transport(code: grpc.StatusCode, message: str, endpoint: str) -> ResourceAllocatorError:
    late = code is grpc.StatusCode.CANCELLED and message == _TIMEOUT_EXPIRED
    meant = grpc.StatusCode.DEADLINE_EXCEEDED if late else code
    reason, disposition = _BY_CODE.get(meant, (meant.name, Disposition.TECHNICAL))
    if meant is grpc.StatusCode.UNAVAILABLE:
        told = f"cannot reach the service at {endpoint}: {message}"
    elif meant is grpc.StatusCode.DEADLINE_EXCEEDED:
        told = f"the service at {endpoint} did not answer within the call's deadline; repeating the call is safe"
    else:
        told = f"no answer of the service came from {endpoint}: {message or code.name}"
    return error_of(told, reason=reason, disposition=disposition, code=code)
