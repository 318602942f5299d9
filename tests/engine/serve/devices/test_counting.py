"""Keys' limits over several devices: counted at the front, given back where a device is lost."""

import asyncio
import contextlib

import pytest

from twig.engine.serve.devices.counting import Counter, FrontTenants
from twig.engine.serve.errors import ApiError
from twig.engine.serve.keys import LOCAL

ONE_AT_A_TIME = LOCAL.model_copy(update={"id": "1" * 12, "concurrent": 1})
POOR = LOCAL.model_copy(update={"id": "2" * 12, "rows_per_minute": 100})


@contextlib.asynccontextmanager
async def front(tmp_path):
    """A front that counts, and two devices that ask it; no minute passes."""
    counter = Counter(tmp_path / "tenants")
    counter.counts.clock = lambda: 0.0
    await counter.start()
    try:
        yield counter, FrontTenants(counter.place), FrontTenants(counter.place)
    finally:
        counter.close()


async def happens(done):
    async with asyncio.timeout(10):
        while not done():
            await asyncio.sleep(0.001)


async def left(device):
    """Rows that are left to POOR, as a refusal of more than those names them."""
    with pytest.raises(ApiError) as caught:
        await device.charge(POOR, 100)
    assert caught.value.code == "rows_spent"
    return int(caught.value.message.removesuffix(" now").rpartition(" ")[2])


def test_requests_at_a_time_are_those_of_all_devices(tmp_path):
    async def scenario():
        async with front(tmp_path) as (_, here, there):
            await here.begin(ONE_AT_A_TIME, 80, 40.0)
            with pytest.raises(ApiError) as caught:
                await there.begin(ONE_AT_A_TIME, 80, 40.0)
            assert (caught.value.status, caught.value.code) == (429, "too_many_requests")
            assert caught.value.headers["retry-after"] == "2", "what runs takes two seconds"
            await there.begin(LOCAL, 80, 40.0)
            here.end(ONE_AT_A_TIME, 80)
            await here.charge(POOR, 1)  # so that the front has heard of the end
            await there.begin(ONE_AT_A_TIME, 80, 40.0)

    asyncio.run(scenario())


def test_rows_are_taken_from_one_allowance_and_given_back_to_it(tmp_path):
    async def scenario():
        async with front(tmp_path) as (_, here, there):
            await here.begin(POOR, 60, 40.0)
            with pytest.raises(ApiError, match="allowance is 40 now"):
                await there.charge(POOR, 60)
            here.end(POOR, 60)
            here.give_back(POOR.id, 50)
            assert await left(here) == 90
            with pytest.raises(ApiError, match="ask for fewer steps") as caught:
                await there.begin(POOR, 101, 40.0)
            assert caught.value.status == 403

    asyncio.run(scenario())


def test_a_device_that_has_drawn_nothing_can_give_back(tmp_path):
    """The rows of a job are paid where it is handed in, and given back where it is drawn."""

    async def scenario():
        async with front(tmp_path) as (_, here, there):
            await here.charge(POOR, 60)
            there.give_back(POOR.id, 30)
            await left(there)  # in the order in which it was told
            assert await left(here) == 70

    asyncio.run(scenario())


def test_what_a_lost_device_ran_is_over_and_given_back(tmp_path):
    async def scenario():
        async with front(tmp_path) as (counter, _, there):
            lost = FrontTenants(counter.place)
            await lost.begin(ONE_AT_A_TIME, 80, 40.0)
            await lost.begin(POOR, 60, 40.0)
            await lost.charge(POOR, 10)  # a job, which another device draws
            lost._talking.cancel()
            await happens(lambda: counter.counts.allowance(POOR.id) == 90)
            await there.begin(ONE_AT_A_TIME, 80, 40.0)

    asyncio.run(scenario())


def test_who_leaves_while_the_front_is_asked_has_taken_nothing(tmp_path):
    async def scenario():
        async with front(tmp_path) as (counter, here, _):
            asking = asyncio.ensure_future(here.begin(POOR, 60, 40.0))
            await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait({asking})
            assert asking.cancelled()
            await happens(lambda: counter.counts.allowance(POOR.id) == 100)

    asyncio.run(scenario())
