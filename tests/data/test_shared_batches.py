"""Batches that processes of a node make for each other: the same bits as an own loader's, whoever dies. 15 s."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.data.files.dataset import Dataset, open_dataset
from nfnet_ray.data.loading import sharing as sharing_module
from nfnet_ray.data.loading import stream as stream_module
from nfnet_ray.data.loading.free_memory import free_bytes
from nfnet_ray.data.loading.loader import TrainLoader
from nfnet_ray.data.loading.sharing import Sharing, ahead
from nfnet_ray.data.loading.stream import LEAST_SLOTS, Stream, slot_bytes, slot_for
from nfnet_ray.recipe import DataRecipe, MixingRecipe, ProgressiveRecipe, RandAugmentRecipe
from tests.deadlines import HANG_SECONDS

BATCH, BATCHES = 16, 15  # of 240 images
EPOCHS = 2
PLAIN = DataRecipe(
    image_size=32,
    eval_size=32,
    crop="padded",
    mixing=MixingRecipe(mixup_alpha=None, cutmix_alpha=None),
    randaugment=RandAugmentRecipe(layers=0),
)
STRONG = replace(PLAIN, mixing=MixingRecipe(), randaugment=RandAugmentRecipe(layers=2, magnitude=10.0))
RECIPES = {
    "shift and flip": PLAIN,
    "RandAugment, MixUp and CutMix": STRONG,
    "mixed in float": replace(PLAIN, mixing=MixingRecipe(partners="batch")),
    "decoded crops and AutoAugment": replace(
        PLAIN, crop="random_resized", image_size=24, autoaugment=True, resident="never"
    ),
    "decoded crops and mixing": replace(PLAIN, crop="random_resized", image_size=24, mixing=MixingRecipe()),
    "growing": replace(
        PLAIN,
        mixing=MixingRecipe(cutmix_alpha=None),
        progressive=ProgressiveRecipe(start_size=16, step=8, mixing_grows=True),
    ),
}


@pytest.fixture(scope="module")
def digits(few_digits: Path) -> Dataset:
    return open_dataset(few_digits)


@pytest.fixture(autouse=True)
def all_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a batch may take seconds."""
    monkeypatch.setattr(sharing_module, "LEAST_PATIENCE_SECONDS", HANG_SECONDS)


class Process:
    """What one process has: a loader and its part in the sharing. Several of them may be in one test process."""

    def __init__(
        self,
        digits: Dataset,
        recipe: DataRecipe,
        folder: Path | None,
        *,
        seed: int = 3,
        batch_size: int = BATCH,
    ) -> None:
        self.sharing = Sharing(folder is not None, folder)
        self.loader = TrainLoader(
            digits.train, recipe, batch_size=batch_size, seed=seed, rank=0, world_size=1, threads=1, epochs=EPOCHS,
            device=torch.device("cpu"), sharing=self.sharing,
        )  # fmt: skip

    def batches(self, first: int = 0, epochs: int = EPOCHS) -> Iterator[TrainBatch]:
        for epoch in range(first // BATCHES, epochs):
            yield from self.loader.epoch(epoch, first % BATCHES if epoch == first // BATCHES else 0)

    @property
    def stream(self) -> Stream:
        assert self.sharing._stream is not None
        return self.sharing._stream


@pytest.fixture
def start(digits: Dataset, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started = []

    def begin(recipe: DataRecipe = STRONG, **changes: int) -> Process:
        started.append(Process(digits, recipe, tmp_path, **changes))
        return started[-1]

    yield begin
    for process in started:
        process.sharing.close()


@pytest.fixture(scope="module")
def own(digits: Dataset) -> Callable[[DataRecipe], list[TrainBatch]]:
    """All batches of all epochs, of a loader that shares nothing."""
    known: dict[str, list[TrainBatch]] = {}

    def of(recipe: DataRecipe) -> list[TrainBatch]:
        if repr(recipe) not in known:
            known[repr(recipe)] = list(Process(digits, recipe, None).batches())
        return known[repr(recipe)]

    return of


def assert_same(one: TrainBatch, other: TrainBatch) -> None:
    for name, value in vars(other).items():
        found = getattr(one, name)
        if isinstance(value, torch.Tensor):
            assert (found.dtype, found.shape, found.stride()) == (value.dtype, value.shape, value.stride()), (
                name
            )
            assert torch.equal(found, value), name
        elif value is None:
            assert found is None, name
        else:
            np.testing.assert_array_equal(found, value, name)


def all_same(batches: list[TrainBatch], expected: list[TrainBatch]) -> None:
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert_same(batch, other)


# --- the same bits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_batches_of_others_are_those_of_an_own_loader(
    start: Callable[..., Process], own: Callable[..., list[TrainBatch]], recipe: DataRecipe
) -> None:
    """In turn, so that the first one makes every batch but the one that was made before it had a partner."""
    one, other = start(recipe), start(recipe)
    made = taken = 0
    for epoch in range(EPOCHS):
        pairs = list(zip(one.loader.epoch(epoch), other.loader.epoch(epoch), strict=True))
        for number, pair in enumerate(pairs, epoch * BATCHES):
            for batch in pair:
                assert_same(batch, own(recipe)[number])
        made += one.sharing.made + other.sharing.made
        taken += one.sharing.taken + other.sharing.taken
    assert (made, taken) == (EPOCHS * BATCHES + 1, EPOCHS * BATCHES - 1)
    assert other.loader.shared_share == 1
    assert one.loader.shared_share is None


def test_processes_at_work_at_once_share_the_work(
    start: Callable[..., Process], own: Callable[..., list[TrainBatch]]
) -> None:
    """Each needs the same batch at the same time: while one makes it, the others make those after it."""
    processes = [start() for _ in range(3)]
    together = threading.Barrier(3)
    got: list[list[TrainBatch]] = [[], [], []]
    made = [0, 0, 0]

    def work(number: int) -> None:
        for epoch in range(EPOCHS):
            batches = processes[number].loader.epoch(epoch)
            for _ in range(BATCHES):
                together.wait(HANG_SECONDS)
                got[number].append(next(batches))
            made[number] += processes[number].sharing.made

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_SECONDS)
    for batches in got:
        all_same(batches, own(STRONG))
    # Each but the first one's first, before it has found the others, and rarely one that gave way.
    assert sum(made) < 2 * EPOCHS * BATCHES


def test_for_a_gpu_decoded_images_are_shared_and_each_process_augments_them(
    start: Callable[..., Process], own: Callable[..., list[TrainBatch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is done for a GPU, but on the CPU; a thread takes them in advance."""
    recipe = RECIPES["decoded crops and mixing"]
    one, other = start(recipe), start(recipe)
    for process in (one, other):
        monkeypatch.setattr(process.loader, "_augments_on_device", True)
    first, second = one.batches(), other.batches()
    got: list[list[TrainBatch]] = [[next(first)], [next(second)]]
    for batches, mine in ((first, got[0]), (second, got[1])):
        mine += list(batches)
        all_same(mine, own(recipe))
    # The second one came when the first one was at rest, some batches ahead.
    assert one.sharing.taken + other.sharing.taken > 0
    assert [thread.name for thread in threading.enumerate() if thread.name == "shared-batches"] == []


def test_on_a_gpu_it_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    assert not Sharing().is_on_for(gpu)
    monkeypatch.setenv(sharing_module.VARIABLE, "1")
    assert Sharing().is_on_for(gpu)
    assert not Sharing(False).is_on_for(gpu)


def test_what_fails_in_advance_fails_in_its_turn() -> None:
    def records() -> Generator[dict[str, torch.Tensor], None, None]:
        yield {"one": torch.zeros(1)}
        raise ValueError("two")

    with ahead(records(), 3) as arriving:
        assert next(arriving)["one"] == 0
        with pytest.raises(ValueError, match="two"):
            next(arriving)


@pytest.mark.parametrize("changes", [{"seed": 4}, {"batch_size": 8}, {"recipe": PLAIN}], ids=str)
def test_other_batches_are_not_shared(start: Callable[..., Process], changes: dict[str, int]) -> None:
    one, other = start(), start(**changes)
    next(one.batches())
    next(other.batches())
    assert one.stream.others() == other.stream.others() == []


def test_what_changes_no_batch_separates_no_processes(start: Callable[..., Process]) -> None:
    """Where the data lies, how it is evaluated, and whether it is kept decoded."""
    one = start(STRONG)
    other = start(replace(STRONG, path="elsewhere", eval_size=48, eval_crop="central", resident="never"))
    first, second = one.batches(), other.batches()
    next(first)
    assert_same(next(second), next(Process(one_dataset(one), STRONG, None).batches()))
    assert one.stream.others() == [1]


def one_dataset(process: Process) -> Dataset:
    return open_dataset(process.loader._source.split.beton.path.parent)


def test_a_worker_of_a_group_shares_with_the_same_worker_of_another_group(
    digits: Dataset, tmp_path: Path
) -> None:
    def worker(rank: int) -> tuple[Sharing, Iterator[TrainBatch]]:
        sharing = Sharing(folder=tmp_path)
        loader = TrainLoader(
            digits.train, STRONG, batch_size=BATCH, seed=3, rank=rank, world_size=2, threads=1,
            device=torch.device("cpu"), sharing=sharing,
        )  # fmt: skip
        return sharing, loader.epoch(0)

    workers = [worker(rank) for rank in (0, 1, 0, 1)]
    for _ in range(3):
        for _, batches in workers:
            next(batches)
    assert [sharing.taken for sharing, _ in workers] == [0, 0, 2, 2]
    for sharing, _ in workers:
        sharing.close()


# --- stragglers, late ones, and memory --------------------------------------------------------------


def test_files_that_a_container_has_read_do_not_count_as_taken(tmp_path: Path) -> None:
    here = free_bytes(tmp_path)  # no limit
    limit, anonymous, cached = 8 << 20, 3 << 20, 4 << 20
    (tmp_path / "memory.current").write_text(f"{anonymous + cached}\n")
    (tmp_path / "memory.stat").write_text(
        f"anon {anonymous}\nfile {cached}\ninactive_file {cached - 4096}\nactive_file 4096\n"
    )
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(tmp_path) > here / 2
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    assert free_bytes(tmp_path) == limit - anonymous


@pytest.fixture
def few_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few as there may be: the founder finds little free memory."""
    content = BATCH * 32**2 * 3 + 2 * BATCH * 7 * 8  # bytes after RandAugment, and the numbers
    free = (LEAST_SLOTS + 0.5) * slot_bytes(content) / sharing_module.SHARE_OF_MEMORY
    monkeypatch.setattr(sharing_module, "free_bytes", lambda: free)


@pytest.mark.usefixtures("few_slots")
def test_a_straggler_makes_what_is_not_kept_for_it_and_nobody_waits_for_it(
    start: Callable[..., Process], own: Callable[..., list[TrainBatch]]
) -> None:
    fast, slow = start(), start()
    behind = slow.batches()
    got = [next(behind)]
    all_same(list(fast.batches()), own(STRONG))
    bound = stream_module._SLOTS_AT + LEAST_SLOTS * fast.stream._slot_bytes
    assert (fast.stream.slots, fast.stream.held_bytes <= bound) == (LEAST_SLOTS, True)
    got += [next(behind) for _ in range(BATCHES - 1)]
    assert slow.sharing.taken == LEAST_SLOTS  # the next ones when the fast one came by
    all_same(got + list(behind), own(STRONG))
    assert slow.stream.held_bytes <= bound


def test_side_by_side_memory_is_that_of_a_few_batches(start: Callable[..., Process]) -> None:
    """However many slots there are: a batch that nobody needs any more gives way first."""
    processes = [start() for _ in range(4)]
    for _ in zip(*(process.batches(epochs=1) for process in processes), strict=True):
        pass
    one = processes[0].stream
    assert one.slots > 100
    assert one.held_bytes <= stream_module._SLOTS_AT + 2 * one._slot_bytes


def test_a_late_one_catches_up_and_a_resumed_one_may_be_elsewhere(
    start: Callable[..., Process], own: Callable[..., list[TrainBatch]]
) -> None:
    early, late, resumed = start(), start(), start()
    first, second, third = early.batches(), late.batches(), resumed.batches(first=BATCHES + 4)
    got: list[list[TrainBatch]] = [[next(first) for _ in range(7)], [], []]
    for _ in range(7):
        got[0].append(next(first))
        got[1].append(next(second))
    got[2] += list(third)
    got[0] += list(first)
    got[1] += list(second)
    all_same(got[0], own(STRONG))
    all_same(got[1], own(STRONG))
    all_same(got[2], own(STRONG)[BATCHES + 4 :])
    assert late.sharing.taken == BATCHES  # in its last epoch


def test_the_stream_outlives_its_founder(
    start: Callable[..., Process], own: Callable[..., list[TrainBatch]]
) -> None:
    founder, second = start(), start()
    leaving, staying = founder.batches(), second.batches()
    next(leaving)
    got = [next(staying)]
    founder.sharing.close()
    third = start()
    joining = third.batches()
    for number in range(4):
        assert_same(next(joining), own(STRONG)[number])
        got.append(next(staying))
    assert third.sharing.taken == 3
    all_same(got, own(STRONG)[:5])


def test_which_batch_gives_way() -> None:
    def slot(number: int, kept: list[int], *, needed_by: list[int]) -> int | None:
        return slot_for(number, np.array(kept) + 1, needed_by)

    none = -1
    assert slot(5, [4, none, 3], needed_by=[]) is None  # nobody needs it
    assert slot(5, [4, none, 3], needed_by=[6]) is None  # who needed it has it
    assert slot(5, [none, 4, 3], needed_by=[5]) == 1  # 4 is not needed any more
    assert slot(5, [6, none, 7], needed_by=[5]) == 1  # before what is needed, an empty one
    assert slot(5, [6, 9, 7], needed_by=[5]) == 1  # what is needed last
    assert slot(9, [6, 8, 7], needed_by=[5]) is None  # it is needed last itself
    assert slot(9, [6, 8, 7], needed_by=[5, 9]) == 1  # another one needs it now


# --- whoever dies, and whatever fails ---------------------------------------------------------------

# Each line of its input names the place at which a process that it forks is to die; torch is imported once for all.
_DIES = """
import os, signal, sys
from pathlib import Path
import torch
from nfnet_ray.data.files.dataset import open_dataset
from nfnet_ray.data.loading import sharing, stream
from tests.data.test_shared_batches import STRONG, Process

torch.set_num_threads(1)
data, folder = sys.argv[1:]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

def begin(place):
    if place == "making":  # with a claim
        one = sharing.Sharing._one
        def dies(self, number, make):
            return die() if number == 5 else one(self, number, make)
        sharing.Sharing._one = dies
    if place == "writing":  # with a half-written batch in a slot
        write = stream._write_all
        def half(file, content, offset):
            write(file, content[: len(content) // 2], offset)
            len(content) > 40_000 and die()
        stream._write_all = half
    if place == "reading":
        stream._read_all = die
    process = Process(open_dataset(Path(data)), STRONG, Path(folder))
    for batch in process.batches():
        pass

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        begin(line.strip())
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_killed_process_leaves_right_batches_and_nothing_else(
    few_digits: Path, tmp_path: Path, start: Callable[..., Process], own: Callable[..., list[TrainBatch]]
) -> None:
    """With SIGKILL, while it makes a batch, writes one or reads one: this process is at batch 5 and needs it."""
    command = [sys.executable, "-c", _DIES, str(few_digits), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as others:
        assert others.stdin is not None
        assert others.stdout is not None
        process = start()
        batches = process.batches()
        got = [next(batches) for _ in range(5)]
        for place in ("making", "writing", "reading"):
            if place == "reading":  # which needs something to read
                assert process.stream.publish(0, sharing_record(got[0]), needed_by=[0])
            others.stdin.write(place.encode() + b"\n")
            others.stdin.flush()
            assert int(others.stdout.readline()) == -signal.SIGKILL, place
            assert process.stream.others() == []
            assert not process.stream.has(5)
            assert process.stream.claim(5), "the dead one's claim"
            process.stream.release(5)
        others.stdin.close()
    all_same(got + list(batches), own(STRONG))
    # The one file is the list of members; the memory has no name, so it goes with the processes.
    assert [path.name.rpartition("-")[0] for path in tmp_path.iterdir()] == ["streams"]
    assert not [name for name in os.listdir("/dev/shm") if "nfnet_ray" in name]


def sharing_record(batch: TrainBatch) -> dict[str, torch.Tensor]:
    return {
        name: value if isinstance(value, torch.Tensor) else torch.from_numpy(value)
        for name, value in vars(batch).items()
        if value is not None
    }


def test_a_process_that_stops_in_the_middle_of_a_batch_is_not_waited_for(
    start: Callable[..., Process], own: Callable[..., list[TrainBatch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claim stays: meanwhile this process makes the next ones, then the claimed one for itself."""
    monkeypatch.setattr(sharing_module, "LEAST_PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(sharing_module, "PATIENCE", 0.0)
    process = start()
    batches = process.batches()
    got = [next(batches)]
    stopped = Stream.join(process.loader._key, 0, 0, process.sharing._folder)
    stopped.move_to(1)
    assert stopped.claim(1)
    got.append(next(batches))
    assert not process.stream.has(1)
    assert process.stream.has(2)
    got += list(batches)
    all_same(got, own(STRONG))
    stopped.leave()


@pytest.mark.parametrize("call", ["memfd_create", "pread", "pwrite", "preadv"])
def test_where_memory_fails_each_has_its_own_loader(
    start: Callable[..., Process],
    own: Callable[..., list[TrainBatch]],
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(12, "out of memory")

    one, other = start(), start()
    first, second = one.batches(), other.batches()
    got = [[], []] if call == "memfd_create" else [[next(first)], [next(second)]]
    monkeypatch.setattr(os, call, fail)
    for batches, mine in ((first, got[0]), (second, got[1])):
        all_same(mine + list(batches), own(STRONG))


def test_a_list_of_members_may_be_damaged(
    start: Callable[..., Process], own: Callable[..., list[TrainBatch]], tmp_path: Path
) -> None:
    one = start()
    first = one.batches()
    next(first)
    (path,) = tmp_path.glob("streams-*")
    (key, process, _) = path.read_text().split()
    path.write_bytes(b"\xff\xfe 1 2\n" + f"key {process} 1\n{key} {process} 1\n{key} 1 x\n{key}".encode())
    other = start()
    all_same(list(other.batches()), own(STRONG))
    assert other.stream.others() == []  # it has founded a stream of its own
    all_same([next(first)], own(STRONG)[1:2])


def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, start: Callable[..., Process]) -> None:
    monkeypatch.setenv(sharing_module.VARIABLE, "0")
    one = start()
    next(one.batches())
    assert one.sharing._stream is None
