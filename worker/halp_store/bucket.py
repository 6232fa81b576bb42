"""How a bucket is reached: credentials, endpoint, patience; and what it answers, in our words.

Credentials are looked for where the provider's own tools look for them: environment, profile, role
of the machine. They are never part of an address, of a pickle or of a message.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from obstore.exceptions import PermissionDeniedError, UnauthenticatedError
from obstore.store import AzureStore, GCSStore, S3Store

from halp_store.address import BucketAddress
from halp_store.errors import StoreUnavailable

if TYPE_CHECKING:
    from obstore.store import (
        ClientConfig,
        ObjectStore,
        RetryConfig,
        S3Config,
        S3CredentialProvider,
    )

_CONNECT: Final = timedelta(seconds=5)
# With 32 of them under way a shard of compaction takes its time on a slow line.
_WHOLE_REQUEST: Final = timedelta(minutes=5)
# Botocore renews what ends within 10 minutes; kept for longer than that, they would end in use.
_CREDENTIALS_KEPT: Final = timedelta(minutes=10)

_NO_BUCKET: Final = ("NoSuchBucket", "ContainerNotFound", "specified bucket does not exist")
_CHECK: Final = {
    "s3": "check AWS_PROFILE or AWS_ACCESS_KEY_ID",
    "gs": "check GOOGLE_APPLICATION_CREDENTIALS",
    "az": "check AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_REGION: Final = "is AWS_REGION the bucket's region?"


@dataclass(frozen=True)
class Patience:
    """repeat_seconds: for how long a request that failed is made again. silence_seconds: how long
    an answer may not begin or not go on before it counts as failed."""

    repeat_seconds: float = 20.0
    silence_seconds: float = 15.0


def open_bucket(address: BucketAddress, patience: Patience, *, large: bool = False) -> ObjectStore:
    """A client; nothing is asked of the bucket yet.

    large: for writing values that take longer to send than the silence that is tolerated.
    Raises OSError.
    """
    options: ClientConfig = {"connect_timeout": _CONNECT, "timeout": _WHOLE_REQUEST}
    if not large:
        options["read_timeout"] = timedelta(seconds=patience.silence_seconds)
    retries: RetryConfig = {
        "retry_timeout": timedelta(seconds=patience.repeat_seconds),
        "backoff": {"max_backoff": timedelta(seconds=5)},
        # The time is what ends it.
        "max_retries": 100,
    }
    prefix = address.prefix or None
    try:
        if address.scheme == "gs":
            return GCSStore(
                address.bucket, prefix=prefix, client_options=options, retry_config=retries
            )
        if address.scheme == "az":
            return AzureStore(
                address.bucket, prefix=prefix, client_options=options, retry_config=retries
            )
        config, provider = _s3_config(address)
        if _may_be_plain(address, config.get("endpoint")):
            options["allow_http"] = True
        return S3Store(
            address.bucket,
            prefix=prefix,
            config=config,
            client_options=options,
            retry_config=retries,
            credential_provider=provider,
        )
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - obstore's, its provider's, ValueError: all unlike
        raise explained(error, address, "open") from None


def _s3_config(address: BucketAddress) -> tuple[S3Config, S3CredentialProvider | None]:
    """Region, endpoint and credentials as the AWS tools would find them."""
    config: S3Config = {}
    if region := os.environ.get("AWS_REGION"):
        config["region"] = region
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        config["endpoint"] = endpoint
    if _is_set("AWS_SKIP_SIGNATURE"):  # a public bucket
        return config, None
    try:
        import boto3
        import botocore.exceptions
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:  # obstore alone knows the environment and the roles, but no profiles
        return config, None
    try:
        session = boto3.Session()
        if session.get_credentials() is None:
            raise PermissionError(
                f"{address}: no credentials for it: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY (AWS_SKIP_SIGNATURE=true for a public bucket)"
            )
        if session.region_name:
            config.setdefault("region", session.region_name)
        found = str(session.client("s3").meta.endpoint_url)
        provider = Boto3CredentialProvider(session, ttl=_CREDENTIALS_KEPT)
    except botocore.exceptions.BotoCoreError as error:
        raise PermissionError(f"{address}: no credentials for it: {error}") from None
    # AWS's own follow from region and bucket; another one may be in the profile.
    if "endpoint" not in config and not re.search(r"\.amazonaws\.com(\.cn)?$", found):
        config["endpoint"] = found
    return config, provider


def _may_be_plain(address: BucketAddress, endpoint: str | None) -> bool:
    """Whether the endpoint may be spoken to without TLS. Raises ConnectionError if it must not."""
    parts = urlsplit(endpoint or "")
    if parts.scheme != "http":
        return False
    if _is_set("AWS_ALLOW_HTTP") or _is_loopback(parts.hostname or ""):
        return True
    raise ConnectionError(
        f"{address}: the endpoint {parts.hostname} is http://, which shows all that is sent to "
        "everybody on the way: give https:// in AWS_ENDPOINT_URL, or set AWS_ALLOW_HTTP=true"
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in {"1", "true", "yes", "on"}


def lacks_bucket(error: Exception) -> bool:
    """Whether a "not found" is about the bucket, not about a key in it."""
    return any(sign in str(error) for sign in _NO_BUCKET)


def is_final(error: Exception) -> bool:
    """Whether the server refused the request, and would refuse it again: nothing was done."""
    status = re.search(r"status code: (\d{3})", str(error))
    if status is None:
        return "Received redirect" in str(error)
    return status[1].startswith("4") and status[1] not in {"408", "409", "412", "429"}


def is_beyond_end(error: Exception) -> bool:
    """Whether a range of bytes was refused because nothing of it is there."""
    # An empty value: some servers refuse any range of it, some answer with all of it.
    return "status code: 416" in str(error) or "non-partial response" in str(error)


def explained(error: Exception, address: BucketAddress, doing: str) -> StoreUnavailable:
    """The error as one sentence, without queries (they may hold signatures) and long answers."""
    text = str(error).partition("\n\nDebug source")[0]
    status = re.search(r"status code: (\d{3})", text)
    if lacks_bucket(error):
        return _unavailable(address, doing, missing_bucket(address), "make it first")
    if status:
        answer = f"{status[1]} {_answer(text)}"
        refused = isinstance(error, PermissionDeniedError | UnauthenticatedError)
        remedy = "look the code up in the provider's documentation"
        if refused or status[1] in {"401", "403"}:
            remedy = (
                f"{_CHECK[address.scheme]}, and that they may list, read, create and delete there"
            )
        elif status[1] in {"301", "307", "400"} and address.scheme == "s3":
            remedy = _REGION
        elif status[1] == "429" or status[1] >= "500":
            remedy = "it went on for longer than a retry helps"
        return _unavailable(address, doing, answer, remedy)
    reason = _short(text)
    remedy = "look at the bucket with the provider's own tools"
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        remedy = _CHECK[address.scheme]
    elif "redirect" in reason:
        remedy = _REGION
    # Not the setting of that name, which every error of the client repeats.
    elif re.search(r"(?<!retry_)timed? ?out", str(error), re.IGNORECASE):
        reason, remedy = f"no answer in time ({reason})", "is the endpoint right?"
    elif "HTTP error" in reason or "error sending request" in reason:
        reason, remedy = f"no answer ({reason})", "is the endpoint right, and up?"
    return _unavailable(address, doing, reason, remedy)


def missing_bucket(address: BucketAddress) -> str:
    """That there is no such bucket."""
    what = "container" if address.scheme == "az" else "bucket"
    return f"there is no {what} {address.bucket}"


def _unavailable(address: BucketAddress, doing: str, reason: str, remedy: str) -> StoreUnavailable:
    return StoreUnavailable(str(address), doing, OSError(reason), remedy)


def _answer(text: str) -> str:
    """Code and message of an error document, or nothing."""
    found = (re.search(rf"<{name}>([^<]*)</{name}>", text) for name in ("Code", "Message"))
    return _short(": ".join(one[1] for one in found if one and one[1])) or "without a reason"


def _short(text: str) -> str:
    first = text.strip().partition("\n")[0]
    return re.sub(r"\?\S*", "?...", re.sub(r"//[^/\s]*@", "//...@", first))[:300]
