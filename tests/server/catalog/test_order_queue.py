"""Orders that come faster than a disk takes them: as if each were alone, and written together."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from server.catalog.order_queue import Orders
from server.errors import OrderRefused, StateNotSaved
from server.versions.activation import Cause, NameRecord, Situation, Target, activated

TARGETS = tuple(Target(f"1.{i}.0", f"sha256:{i:064x}") for i in range(5))


class Book:
    """One name whose record is written slowly, where a test wants it."""

    def __init__(self) -> None:
        self.record = NameRecord()
        self.written: list[NameRecord] = []
        self.may_write = asyncio.Event()
        self.error: Exception | None = None
        self.orders = Orders(asyncio.Lock(), self.situation, self.hold)

    def situation(self, name: str) -> Situation:
        return Situation(self.record, TARGETS, TARGETS)

    async def hold(self, name: str, record: NameRecord) -> None:
        await self.may_write.wait()
        if self.error is not None:
            raise self.error
        self.record = record
        self.written.append(record)

    def give(self, index: int) -> "asyncio.Task[NameRecord]":
        return asyncio.create_task(self.orders.give("pirate", activate(index)))


def activate(index: int) -> Callable[[Situation], NameRecord]:
    cause = Cause("activate", "alice", float(index))
    return lambda situation: activated(situation.record, TARGETS[index], cause, has_file=True)


def refuse(situation: Situation) -> NameRecord:
    raise OrderRefused("no")


@pytest.fixture
async def book() -> Book:
    return Book()


async def test_orders_that_wait_are_written_once_and_each_gets_its_own_answer(book: Book) -> None:
    orders = [book.give(i) for i in range(4)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    book.may_write.set()
    records = [await order for order in orders]
    assert [record.active for record in records] == list(TARGETS[:4])
    # The first was alone when it began.
    assert len(book.written) <= 2
    assert book.record == records[-1]
    assert [change.at_s for change in book.record.history] == [3.0, 2.0, 1.0, 0.0]


async def test_nothing_is_confirmed_before_it_is_written(book: Book) -> None:
    orders = [book.give(i) for i in range(3)]
    await asyncio.sleep(0.01)
    assert not any(order.done() for order in orders)
    book.may_write.set()
    await asyncio.gather(*orders)


async def test_an_order_that_is_refused_takes_nothing_from_the_others(book: Book) -> None:
    first = book.give(0)
    refused = asyncio.create_task(book.orders.give("pirate", refuse))
    last = book.give(1)
    book.may_write.set()
    with pytest.raises(OrderRefused):
        await refused
    assert (await first).active == TARGETS[0]
    assert (await last).active == TARGETS[1]
    assert book.record.active == TARGETS[1]


async def test_a_record_that_can_not_be_written_fails_all_of_them_and_changes_nothing(book: Book) -> None:
    book.error = StateNotSaved("full")
    orders = [book.give(i) for i in range(3)]
    book.may_write.set()
    results: list[Any] = await asyncio.gather(*orders, return_exceptions=True)
    assert all(isinstance(result, StateNotSaved) for result in results)
    assert book.record == NameRecord()
    book.error = None
    record = await book.give(4)
    assert record.active == TARGETS[4]
    assert record.previous == ()


async def test_an_order_whose_caller_went_away_while_it_waited_is_never_carried_out(book: Book) -> None:
    first = book.give(0)
    await asyncio.sleep(0.01)
    gone = book.give(1)
    await asyncio.sleep(0.01)
    gone.cancel()
    await asyncio.wait({gone})
    book.may_write.set()
    await first
    record = await book.give(2)
    assert [change.at_s for change in record.history] == [2.0, 0.0]
