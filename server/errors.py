"""What a request, or a patch file, can do wrong, and the OpenAI error object that says so.

This module is the one table from exception to HTTP status, ``type`` and ``code``::

    PolicyPatchError                         500  internal_error
    ├── MalformedPatchName     (ValueError)  400  malformed_patch_name
    ├── UnsupportedWithPatch                 400  unsupported_with_patch
    │   └── CompositionNotPrepared           400  composition_not_prepared
    ├── AmbiguousCaller        (ValueError)  400  ambiguous_caller
    ├── MalformedBody          (ValueError)  400  malformed_body
    ├── RevisionGone                         409  revision_gone
    ├── CatalogStale                         503  catalog_stale
    ├── PatchForbidden                       403  patch_forbidden
    ├── PatchNotFound          (LookupError) 404  patch_not_found
    ├── PatchNotApplied                      500  patch_not_applied
    ├── PatchNotReady                        503  patch_not_ready
    ├── NotInStep                            503  not_in_step
    ├── PatchWithdrawn                       503  patch_withdrawn
    ├── AdminDisabled                        403  admin_disabled
    ├── AdminKeyInvalid                      401  invalid_admin_key
    ├── AdminCallInvalid       (ValueError)  400  invalid_admin_call
    ├── OrderRefused                         409  order_refused
    │   ├── NothingToRollBack                409  nothing_to_roll_back
    │   ├── ManagedByFleet                   409  managed_by_fleet
    │   └── WeightsBusy                      409  weights_busy
    ├── StateNotSaved                        500  state_not_saved
    └── FileRefused                          500  load_failed
        ├── BaseModelConflict                409  base_model_mismatch
        ├── KindUnsupported                  409  kind_unsupported
        ├── PatchConflict                    409  patch_conflict
        ├── PatchUnsigned                    403  patch_unsigned
        ├── SignerUntrusted                  403  signer_untrusted
        ├── SignatureInvalid                 403  signature_invalid
        ├── PatchRevoked                     403  patch_revoked
        ├── BelowMinimumVersion              409  below_minimum_version
        ├── PatchTooLarge                    413  patch_too_large
        └── InvalidPatchFile                 422  invalid_patch_file

A request meets the ``FileRefused`` branch only as the ``code`` of a failure in ``GET /v1/patches``.

``UnsupportedWithPatch`` is no ``ValueError`` or ``NotImplementedError`` on purpose: vLLM's handlers turn
those into answers of their own and would drop ``code`` and ``param``.
"""

from collections.abc import Mapping

from patches.headers import AS_OF_HEADER, PATCH_HEADER
from patches.terminal import one_line

#: ``param`` of an error that the ``<served name>:<patch>`` alias caused.
ALIAS_PARAM = "model"


class _BadRequest:
    status = 400
    type = "BadRequestError"


class _PermissionDenied:
    status = 403
    type = "PermissionDeniedError"


class _Conflict:
    status = 409
    type = "ConflictError"


class _Unavailable:
    status = 503
    type = "ServiceUnavailableError"


class PolicyPatchError(Exception):
    """Root of everything that this package raises on purpose; the message is shown to the client."""

    status: int = 500
    type: str = "InternalServerError"
    code: str = "internal_error"
    param: str | None = None
    retry_after_s: int | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        # A message may quote a name or a text of somebody else, and has to survive every encoder.
        message = one_line(message)
        super().__init__(message)
        self.message = message
        if param is not None:
            self.param = param

    def body(self) -> dict[str, dict[str, str | None]]:
        """Return the OpenAI error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> Mapping[str, str]:
        """Return the response headers that belong to this error."""
        if self.retry_after_s is None:
            return {}
        return {"Retry-After": str(self.retry_after_s)}

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.__dict__)


def _rebuild(kind: type[PolicyPatchError], message: str, state: dict[str, object]) -> PolicyPatchError:
    error = kind(message)
    error.__dict__.update(state)
    return error


class MalformedPatchName(_BadRequest, PolicyPatchError, ValueError):
    """The header or the alias does not follow the grammar."""

    code = "malformed_patch_name"
    param = PATCH_HEADER


class UnsupportedWithPatch(_BadRequest, PolicyPatchError):
    """The route, or an option of the request, can't honour a patch."""

    code = "unsupported_with_patch"
    param = PATCH_HEADER


class CompositionNotPrepared(UnsupportedWithPatch):
    """Several patches were named, and no loaded patch was composed of exactly these."""

    code = "composition_not_prepared"


class PatchForbidden(_PermissionDenied, PolicyPatchError):
    """The policy does not let the caller choose this."""

    code = "patch_forbidden"
    param = PATCH_HEADER
    #: Which rule of the policy refuses. For the audit log; a client does not see it.
    rule: str | None = None

    def __init__(self, message: str, *, param: str | None = None, rule: str | None = None) -> None:
        super().__init__(message, param=param)
        self.rule = rule


class AmbiguousCaller(_BadRequest, PolicyPatchError, ValueError):
    """The key or the tenant is sent twice, or is malformed, so the caller can't be identified."""

    code = "ambiguous_caller"


class MalformedBody(_BadRequest, PolicyPatchError, ValueError):
    """The body is no JSON object, or names no model as text, on a route that would not say so."""

    code = "malformed_body"


class RevisionGone(_Conflict, PolicyPatchError):
    """The revision that a request wants to be decided by is not retained any more."""

    code = "revision_gone"
    param = AS_OF_HEADER


class CatalogStale(_Unavailable, PolicyPatchError):
    """The lease of the fleet's catalog ran out, so that what is required may have been taken back."""

    code = "catalog_stale"
    retry_after_s = 5


class PatchNotFound(PolicyPatchError, LookupError):
    """No loaded patch has this name, version or digest."""

    status = 404
    type = "NotFoundError"
    code = "patch_not_found"
    param = PATCH_HEADER


class PatchNotApplied(PolicyPatchError):
    """An answer was about to be sent in which the selected patch had no part."""

    code = "patch_not_applied"


class PatchNotReady(_Unavailable, PolicyPatchError):
    """The patch is known but not resident on every worker; trying again soon is worth it."""

    code = "patch_not_ready"
    param = PATCH_HEADER
    retry_after_s = 1


class NotInStep(_Unavailable, PolicyPatchError):
    """A process of the server does not know for sure what serves now, so nothing is decided or changed."""

    code = "not_in_step"
    retry_after_s = 1


class PatchWithdrawn(_Unavailable, PolicyPatchError):
    """An operator dropped the patch and did not wait for the requests that it was answering."""

    code = "patch_withdrawn"
    retry_after_s = 1


class AdminDisabled(_PermissionDenied, PolicyPatchError):
    """The server was started without admin keys, so no caller may change the catalog over HTTP."""

    code = "admin_disabled"


class AdminKeyInvalid(PolicyPatchError):
    """An admin call without a key, or with one that is not in the file."""

    status = 401
    type = "AuthenticationError"
    code = "invalid_admin_key"

    def headers(self) -> Mapping[str, str]:
        """Return how to authenticate, as RFC 9110 asks for."""
        return {"WWW-Authenticate": "Bearer"}


class AdminCallInvalid(_BadRequest, PolicyPatchError, ValueError):
    """An admin call whose path or body makes no sense."""

    code = "invalid_admin_call"


class OrderRefused(_Conflict, PolicyPatchError):
    """An admin call that does not fit the present state of the catalog."""

    code = "order_refused"


class NothingToRollBack(OrderRefused):
    """No version that was active before is on the workers."""

    code = "nothing_to_roll_back"


class ManagedByFleet(OrderRefused):
    """What is served is the matter of the fleet's catalog, which one server must not leave."""

    code = "managed_by_fleet"


class WeightsBusy(OrderRefused):
    """Weights were to change, and requests did not end in time; nothing was changed."""

    code = "weights_busy"


class StateNotSaved(PolicyPatchError):
    """The state folder could not be written, so the order was not carried out."""

    code = "state_not_saved"


class FileRefused(PolicyPatchError):
    """A patch file can't be served: the workers did not take it, or something unexpected happened."""

    code = "load_failed"
    #: Label of ``policy_patch_load_failures_total``.
    reason: str = "internal"

    def __init__(self, message: str, *, param: str | None = None, reason: str | None = None) -> None:
        super().__init__(message, param=param)
        if reason is not None:
            self.reason = reason

    @classmethod
    def of_code(cls, code: str, message: str, reason: str) -> "FileRefused":
        """Make the error that stands for ``code``."""
        kind = next((kind for kind in cls.__subclasses__() if kind.code == code), cls)
        return kind(message, reason=reason)


class BaseModelConflict(_Conflict, FileRefused):
    """The file was made for another base model than the one served."""

    code = "base_model_mismatch"
    reason = "base_model_mismatch"


class KindUnsupported(_Conflict, FileRefused):
    """The file's kind of patch can't act on this server, or on this model."""

    code = "kind_unsupported"
    reason = "kind_unsupported"


class PatchConflict(_Conflict, FileRefused):
    """Another file already serves this name and version with different content."""

    code = "patch_conflict"
    reason = "conflict"


class PatchUnsigned(_PermissionDenied, FileRefused):
    """The server demands signatures, and the file has none."""

    code = "patch_unsigned"
    reason = "unsigned"


class SignerUntrusted(_PermissionDenied, FileRefused):
    """The file is signed, but by no key that this server trusts."""

    code = "signer_untrusted"
    reason = "untrusted_signer"


class SignatureInvalid(_PermissionDenied, FileRefused):
    """The signature is malformed or forged, or belongs to something else."""

    code = "signature_invalid"
    reason = "bad_signature"


class PatchRevoked(_PermissionDenied, FileRefused):
    """The content, or a part that it was composed of, is on the list of revoked digests."""

    code = "patch_revoked"
    reason = "revoked"


class BelowMinimumVersion(_Conflict, FileRefused):
    """A signature forbade this version of the name, or one of the versions that it was composed of."""

    code = "below_minimum_version"
    reason = "below_minimum_version"


class PatchTooLarge(FileRefused):
    """The file, or its prefix, is larger than this server takes."""

    status = 413
    type = "PayloadTooLargeError"
    code = "patch_too_large"
    reason = "too_large"


class InvalidPatchFile(FileRefused):
    """The file is no valid patch, or none that a server can use."""

    status = 422
    type = "UnprocessableEntityError"
    code = "invalid_patch_file"
    reason = "unreadable"


#: Every ``code`` with which a request can be refused: the label values of a metric.
REQUEST_CODES: tuple[str, ...] = (
    PolicyPatchError.code,
    MalformedPatchName.code,
    UnsupportedWithPatch.code,
    CompositionNotPrepared.code,
    AmbiguousCaller.code,
    MalformedBody.code,
    RevisionGone.code,
    CatalogStale.code,
    PatchForbidden.code,
    PatchNotFound.code,
    PatchNotApplied.code,
    PatchNotReady.code,
    NotInStep.code,
    PatchWithdrawn.code,
)

#: Every ``code`` that an admin call can meet beside those of a file.
ADMIN_CODES: tuple[str, ...] = (
    AdminDisabled.code,
    AdminKeyInvalid.code,
    AdminCallInvalid.code,
    OrderRefused.code,
    NothingToRollBack.code,
    ManagedByFleet.code,
    WeightsBusy.code,
    StateNotSaved.code,
)

#: Every ``code`` that there is.
ERROR_CODES: tuple[str, ...] = (
    *REQUEST_CODES,
    *ADMIN_CODES,
    FileRefused.code,
    BaseModelConflict.code,
    KindUnsupported.code,
    PatchConflict.code,
    PatchUnsigned.code,
    SignerUntrusted.code,
    SignatureInvalid.code,
    PatchRevoked.code,
    BelowMinimumVersion.code,
    PatchTooLarge.code,
    InvalidPatchFile.code,
)
