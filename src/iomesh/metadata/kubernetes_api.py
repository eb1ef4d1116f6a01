"""The API server of Kubernetes, as far as the metadata service needs it: requests for JSON, and watches.

A request is sent at most once, on one connection. That keeps three answers apart: it was carried out; it was refused
(Refused, with the server's status); or nobody knows (MetadataUnavailable: no connection, no answer in time, an internal
error of the server).

Inside a pod the credentials are those of its service account, whose token is read anew while it is used, because it
expires. Elsewhere a kubeconfig has them: a token, its file, or a client certificate.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
import yaml

from iomesh.errors import ConfigError, IomeshError, NotFound, PermissionDenied, Unsupported
from iomesh.metadata.protocol import HistoryLost, MetadataUnavailable

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 10.0
WATCH_SECONDS = 240  # then the server ends a watch, and a new one begins where it ended
TOKEN_SECONDS = 30.0  # a token that was read so long ago is read again: the kubelet replaces it before it expires
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
MERGE_PATCH = "application/merge-patch+json"

# A peer that vanished is noticed after 15 to 20 seconds, also by a watch that only listens.
SOCKET_OPTIONS = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15_000),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
]

Object = dict[str, Any]


class Refused(IomeshError):
    """The API server did not carry out the request. `status`: of HTTP; 404 not found, 409 conflict or already exists,
    410 gone, 422 invalid."""

    def __init__(self, message: str, *, status: int = 500, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Where the API server is, and who we are to it."""

    server: str  # URL
    tls: ssl.SSLContext
    token: str = ""
    token_file: Path | None = None  # read again while it is used
    namespace: str = ""  # of the pod, or of the kubeconfig's context; empty: none is named


def find_access(kubeconfig: str = "") -> Access:
    """The access that `kubeconfig` (a path) describes; empty: that of this pod. Raises ConfigError, NotFound,
    PermissionDenied."""
    return _read_kubeconfig(Path(kubeconfig)) if kubeconfig else _in_cluster()


class KubernetesApi:
    def __init__(self, access: Access) -> None:
        self.access = access
        self._token, self._token_read = access.token, float("-inf")
        self._client = httpx.AsyncClient(
            base_url=access.server,
            transport=httpx.AsyncHTTPTransport(
                verify=access.tls, socket_options=SOCKET_OPTIONS, limits=httpx.Limits(max_connections=None)
            ),
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            headers={"Accept": "application/json", "User-Agent": "iomesh"},
            trust_env=False,
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """The JSON of a successful answer. Raises Refused, MetadataUnavailable, PermissionDenied."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS + ANSWER_SECONDS):
                response = await self._client.request(
                    method,
                    path,
                    params=params,
                    content=None if body is None else json.dumps(body).encode(),
                    headers=self._headers() | ({} if body is None else {"Content-Type": content_type}),
                )
        except (httpx.HTTPError, TimeoutError, OSError) as error:
            raise self._unavailable(error) from error
        if not response.is_success:
            raise self._refusal(response.status_code, response.content)
        try:
            answer = json.loads(response.content)
        except ValueError as error:
            raise self._unavailable(error) from error
        if not isinstance(answer, dict):
            raise self._unavailable(ValueError("its answer is no JSON object"))
        return answer

    async def watch(
        self, path: str, after: str, params: Mapping[str, str] | None = None
    ) -> AsyncGenerator[tuple[str, Object], None]:
        """Events of a list after the resource version `after`, endlessly: ADDED, MODIFIED, DELETED with the object, and
        BOOKMARK, whose object has only a resource version. Raises HistoryLost, MetadataUnavailable,
        PermissionDenied."""
        while True:
            query = dict(params or {}) | {
                "watch": "1",
                "resourceVersion": after,
                "allowWatchBookmarks": "true",
                "timeoutSeconds": str(WATCH_SECONDS),
            }
            try:
                timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS, read=WATCH_SECONDS + ANSWER_SECONDS)
                async with self._client.stream(
                    "GET", path, params=query, headers=self._headers(), timeout=timeout
                ) as response:
                    if not response.is_success:
                        raise self._refusal(response.status_code, await response.aread())
                    async for line in _lines(response):
                        event = json.loads(line)
                        kind, thing = str(event["type"]), event["object"]
                        if kind == "ERROR":
                            raise self._refusal(int(thing.get("code", 500)), json.dumps(thing).encode())
                        after = thing["metadata"]["resourceVersion"]
                        yield kind, thing
            except (httpx.HTTPError, TimeoutError, OSError, ValueError, KeyError, TypeError) as error:
                raise self._unavailable(error) from error
            except Refused as refused:
                if refused.status == 410:
                    raise HistoryLost(f"{self.access.server}: {refused.message}") from refused
                raise MetadataUnavailable(f"Kubernetes at {self.access.server}: {refused.message}") from refused

    def _headers(self) -> dict[str, str]:
        file = self.access.token_file
        if file is not None and time.monotonic() - self._token_read >= TOKEN_SECONDS:
            try:
                self._token = file.read_text().strip()
            except OSError as error:
                if not self._token:
                    raise PermissionDenied(f"{file}: the token cannot be read: {error.strerror}") from error
            self._token_read = time.monotonic()
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def _unavailable(self, error: Exception) -> MetadataUnavailable:
        reason = "no answer in time" if isinstance(error, TimeoutError | httpx.TimeoutException) else str(error)
        return MetadataUnavailable(f"Kubernetes at {self.access.server}: {reason or type(error).__name__}")

    def _refusal(self, status: int, content: bytes) -> Exception:
        reason, message = "", content[:300].decode(errors="replace")
        try:
            answer = json.loads(content)
            reason, message = str(answer.get("reason", "")), str(answer.get("message", message))
        except (ValueError, AttributeError):
            pass
        if status in (401, 403):
            self._token_read = float("-inf")
            return PermissionDenied(
                f"Kubernetes at {self.access.server}: {message}; the service account needs the Role of the chart"
            )
        if status == 429 or status >= 500 or status < 400:  # 429, 503: not done; 500, 504: nobody knows
            return MetadataUnavailable(f"Kubernetes at {self.access.server}: {status} {message}")
        return Refused(message, status=status, reason=reason)


async def _lines(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line


def _in_cluster() -> Access:
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    token = SERVICE_ACCOUNT / "token"
    if not host or not token.exists():
        raise ConfigError(
            "metadata.kind is kubernetes, and this is no pod with a service account: set metadata.kubeconfig"
        )
    return Access(
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        tls=_verifying(ssl.create_default_context(cafile=str(SERVICE_ACCOUNT / "ca.crt"))),
        token_file=token,
        namespace=(SERVICE_ACCOUNT / "namespace").read_text().strip(),
    )


def _read_kubeconfig(path: Path) -> Access:
    try:
        config = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise NotFound(f"kubeconfig {path} does not exist") from None
    except PermissionError:
        raise PermissionDenied(f"kubeconfig {path} is not readable") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"kubeconfig {path}: {error}") from None
    try:
        context = _named(config, "contexts", config["current-context"])["context"]
        cluster = _named(config, "clusters", context["cluster"])["cluster"]
        user = _named(config, "users", context["user"])["user"]
        if "exec" in user or "auth-provider" in user:
            raise Unsupported(
                f"kubeconfig {path}: it runs a program for its credentials: name a token or a certificate"
            )
        return Access(
            server=cluster["server"].rstrip("/"),
            tls=_tls(path, cluster, user),
            token=user.get("token", ""),
            token_file=Path(user["tokenFile"]) if "tokenFile" in user else None,
            namespace=context.get("namespace", ""),
        )
    except IomeshError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise ConfigError(f"kubeconfig {path}: {type(error).__name__}: {error}") from error


def _named(config: Object, kind: str, name: str) -> Object:
    for each in config[kind]:
        if each["name"] == name:
            return dict(each)
    raise KeyError(f"{kind} has no {name!r}")


def _tls(path: Path, cluster: Object, user: Object) -> ssl.SSLContext:
    authority = _content(path, cluster, "certificate-authority")
    context = _verifying(ssl.create_default_context(cadata=authority.decode() if authority else None))
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    certificate, key = _content(path, user, "client-certificate"), _content(path, user, "client-key")
    if certificate and key:
        with tempfile.NamedTemporaryFile() as file:  # OpenSSL reads both from a file alone; it is ours (mode 0600)
            file.write(certificate + b"\n" + key)
            file.flush()
            context.load_cert_chain(file.name)
    return context


def _verifying(context: ssl.SSLContext) -> ssl.SSLContext:
    """Python 3.13 began to refuse certificates without extensions that many clusters' authorities lack."""
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _content(path: Path, entry: Object, key: str) -> bytes:
    if f"{key}-data" in entry:
        return base64.b64decode(entry[f"{key}-data"])
    return (path.parent / entry[key]).read_bytes() if key in entry else b""
