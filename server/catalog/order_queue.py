"""Operators' orders that wait for the catalog: those about one name are carried out together.

An order takes effect only once it is on disk, which takes milliseconds to tens of them. Where orders come in
faster, those that wait are decided one after the other, each upon the record that the one before left, and
the last record is written once. To every caller it looks as if its order had been carried out alone; what is
overtaken before it was written never serves.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from server.versions.activation import NameRecord, Situation

#: Returns the new record, or raises where the order can't be carried out.
Decide = Callable[[Situation], NameRecord]


@dataclass(slots=True, eq=False)
class _Order:
    decide: Decide
    record: NameRecord | None = None
    error: BaseException | None = None

    def outcome(self) -> NameRecord:
        if self.error is not None:
            raise self.error
        assert self.record is not None
        return self.record


class Orders:
    """Takes orders, one name at a time; event loop thread only."""

    def __init__(
        self,
        changes: asyncio.Lock,
        situation: Callable[[str], Situation],
        hold: Callable[[str, NameRecord], Awaitable[None]],
    ) -> None:
        """Prepare to take orders.

        Args:
            changes: Held while orders are carried out.
            situation: Returns what is known about a name.
            hold: Makes a record the one that holds: on disk first, then for requests.
        """
        self._changes = changes
        self._situation = situation
        self._hold = hold
        self._waiting: dict[str, list[_Order]] = {}

    async def give(self, name: str, decide: Decide) -> NameRecord:
        """Carry out an order about ``name``; it holds, and survives the process, when this returns."""
        order = _Order(decide)
        self._waiting.setdefault(name, []).append(order)
        try:
            async with self._changes:
                # The order that had the lock first has carried out all that waited.
                await self._carry_out(name, self._waiting.pop(name, []))
        finally:
            self._take_back(name, order)
        return order.outcome()

    def _take_back(self, name: str, order: _Order) -> None:
        """Remove an order that still waits though its caller went away: no later one is to carry it out."""
        waiting = self._waiting.get(name, [])
        if order in waiting:
            waiting.remove(order)

    async def _carry_out(self, name: str, orders: list[_Order]) -> None:
        situation = self._situation(name) if orders else None
        decided = []
        for order in orders:
            assert situation is not None
            try:
                order.record = order.decide(situation)
            except Exception as error:
                order.error = error
                continue
            situation = replace(situation, record=order.record)
            decided.append(order)
        if not decided or situation is None:
            return
        try:
            await self._hold(name, situation.record)
        except BaseException as error:
            for order in decided:
                order.error = error
            if not isinstance(error, Exception):
                raise
