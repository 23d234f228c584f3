"""The admin app on the catalog of ``stand``, with a state folder and two keys."""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.admin.access import AdminAccess
from server.admin.keys import AdminKeys
from server.admin.operator import Operator
from server.admin.uploads import Uploads
from server.audit import AuditEvent
from server.catalog.folder import PatchFolder
from server.catalog.records import Records
from server.catalog.state_folder import CatalogState
from server.routes.admin_app import Admin
from tests.server.stand import Stand

ALICE = "alice-knows-this-key"
BOT = "deploy-bot-knows-this"


@dataclass
class AuditList:
    """Keeps events for tests to read."""

    events: list[AuditEvent] = field(default_factory=list)

    def record(self, event: AuditEvent) -> None:
        self.events.append(event)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "admin-keys"
    path.write_text(f"# operators\nalice:{ALICE}\n\ndeploy-bot: {BOT}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    records = Records(CatalogState(tmp_path / "state"), keep_previous=1)
    yield records
    records.close()


@dataclass
class AdminStand:
    """Calls the admin routes as one operator."""

    client: httpx.AsyncClient
    operator: Operator
    audit: AuditList
    stand: Stand
    parts: Admin

    async def put(
        self, data: bytes, path: str = "pirate/1.0.0", signature: bytes | None = None, **query: Any
    ) -> httpx.Response:
        """Upload a patch file."""
        headers = {"Content-Type": "application/octet-stream"}
        if signature is not None:
            headers["X-Policy-Patch-Signature"] = base64.b64encode(signature).decode()
        return await self.client.put(f"/v1/patches/{path}", content=data, headers=headers, params=query)

    async def delete(self, path: str, **query: Any) -> httpx.Response:
        return await self.client.delete(f"/v1/patches/{path}", params=query)

    async def post(self, path: str, **body: Any) -> httpx.Response:
        """Give an order."""
        return await self.client.post(f"/v1/patches/{path}", json=body)

    async def get(self, path: str) -> Any:
        response = await self.client.get(f"/v1/patches/{path}")
        assert response.status_code == 200, response.text
        return response.json()

    async def answers(self, header: str = "pirate") -> str | None:
        """Ask for a chat completion; gives the version that answered."""
        response = await self.stand.chat(header)
        return response.headers["x-policy-patch"] if response.status_code == 200 else None

    async def arms(self, num: int = 200, header: str | None = "X-User-Id") -> dict[str, str | None]:
        """Ask as ``num`` users; gives the version that answered each."""
        found = {}
        for i in range(num):
            headers = {"X-Policy-Patch": "pirate", **({header: f"user-{i}"} if header else {})}
            response = await self.stand.client.post("/v1/chat/completions", headers=headers, json={})
            found[f"user-{i}"] = response.headers.get("x-policy-patch")
        return found

    async def states(self, name: str = "pirate") -> dict[str, str]:
        """Version -> state."""
        return {v["version"]: v["state"] for v in (await self.get(name))["versions"]}


@pytest.fixture
async def admin(stand: Stand, key_file: Path) -> AsyncIterator[AdminStand]:
    audit = AuditList()
    operator = Operator(stand.catalog)
    access = AdminAccess(AdminKeys(key_file), audit)
    folder = PatchFolder(stand.folder, stand.catalog)
    uploads = Uploads(stand.folder, folder, stand.catalog)
    parts = Admin(stand.catalog, operator, uploads, access)
    app = parts.app(stand.decider)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {ALICE}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://admin", headers=headers) as client:
        yield AdminStand(client, operator, audit, stand, parts)
    await asyncio.sleep(0)
